//! Who settles an answer, and what that may cost.
//!
//! | question | module | pure |
//! |---|---|---|
//! | who settles it, and why | [`router`] | yes |
//! | what may escalations cost | [`budget`] | yes |
//! | what holds for the whole box: kill switch, in-flight limit, budgets | [`policy`] | |
//! | what is in the way of one escalation, and what came of it | [`call`] | |

pub mod budget;
pub mod call;
pub mod policy;
pub mod router;
