//! Where an answer goes while it is decoded.

use crate::answer::Piece;

/// Takes the pieces of one answer, and cancels the rest when it is no longer wanted.
///
/// A closure over pieces is a sink that never cancels.
pub trait Sink {
    /// Takes the next piece of the text, as soon as it is known; with candidates, the winner at the
    /// end.
    fn piece(&mut self, piece: &Piece);

    /// Whether to stop here. Asked before each image and each candidate, which take long, and after
    /// each piece of free text.
    fn is_cancelled(&self) -> bool;
}

impl<F: FnMut(&Piece)> Sink for F {
    fn piece(&mut self, piece: &Piece) {
        self(piece);
    }

    fn is_cancelled(&self) -> bool {
        false
    }
}
