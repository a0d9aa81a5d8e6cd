//! The box around the agent: its clocks, and how long to wait before another attempt.

pub mod backoff;
pub mod clock;
