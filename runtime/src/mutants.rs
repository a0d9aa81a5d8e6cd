//! Faults that are built into the agent for one test, to see that the laws find them.
//!
//! Each place that carries one is behind `cfg(test)`; no product build has any.

use std::cell::Cell;

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// The outcome of a pool call is dropped.
    LostOutcome,
    /// An event is dropped without a gap.
    UndeclaredGap,
    /// An event goes on after its `end`.
    EventAfterEnd,
    /// A frame is taken after the stop.
    FrameAfterStop,
    /// A breaker never opens.
    ClosedBreaker,
    /// The retained state of a rule does not follow its events.
    StaleState,
}

thread_local! {
    static ACTIVE: Cell<Option<Mutant>> = const { Cell::new(None) };
}

/// Whether `mutant` is active on this thread.
pub(crate) fn is_active(mutant: Mutant) -> bool {
    ACTIVE.get() == Some(mutant)
}

/// Activates `mutant` on this thread, until what this returns is dropped.
pub(crate) fn activate(mutant: Mutant) -> Active {
    ACTIVE.set(Some(mutant));
    Active
}

/// An active mutant.
pub(crate) struct Active;

impl Drop for Active {
    fn drop(&mut self) {
        ACTIVE.set(None);
    }
}
