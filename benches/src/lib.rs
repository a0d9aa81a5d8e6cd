//! Criterion benches of the hot stages; each states in its module docs the budget it defends.
//! No time is asserted: machines differ, and only ratios measured side by side are comparable.
#![forbid(unsafe_code)]
