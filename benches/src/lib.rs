//! Criterion benches of the hot stages; each says in its module docs which budget it defends.
//! Nothing is asserted about time: machines differ, and what counts are ratios measured side by
//! side.
#![forbid(unsafe_code)]
