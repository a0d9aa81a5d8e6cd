//! What a checkpoint or a bundle holds.
