//! From an answer to an acknowledged MQTT publication.
//!
//! | step | module | pure |
//! |---|---|---|
//! | makes events of answers | [`span`], [`event`], [`topics`] | yes |
//! | the JSON of the states beside events | [`payload`] | yes |
//! | keeps events until they are acknowledged | [`outbox`] | yes |
//! | sends, and sends again when the broker was gone | [`publisher`] | |
//! | takes what the broker delivers: replies of pools, commands | [`inbox`] | |

pub mod event;
pub mod inbox;
pub mod outbox;
pub mod payload;
pub mod post;
pub mod publisher;
#[cfg(test)]
pub(crate) mod reference;
mod retained;
pub mod span;
pub mod topics;
