//! The same model and router, offered to others: OpenAI clients over HTTP, other boxes over MQTT.
//!
//! | what | module |
//! |---|---|
//! | the OpenAI-compatible HTTP endpoint | [`gateway`] |
//! | a pool's worker behind a broker | [`worker`] |
//! | a chat completion: what was asked, what is answered | [`chat`] |
//! | OpenAI's JSON, as it is on the wire | [`openai`] |

pub mod chat;
pub mod gateway;
pub mod openai;
pub mod worker;
