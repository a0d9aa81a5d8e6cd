//! The same model and router for others: OpenAI clients over HTTP, other boxes over MQTT.
//!
//! | part | module |
//! |---|---|
//! | the OpenAI-compatible HTTP endpoint | [`gateway`] |
//! | a pool's worker behind a broker | [`worker`] |
//! | a chat request as a question to the model, its answer as a completion | [`chat`] |

pub mod chat;
pub mod gateway;
pub mod worker;
