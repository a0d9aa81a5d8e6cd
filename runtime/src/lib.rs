//! Egret, the agent.
//!
//! ```text
//! devices::Camera ──frame──▶ gate ──admitted──▶ inference (vlm::Vlm, one thread) ──local answer──▶ router
//!  one thread each  latest     pure  mpsc(1)      one prefix per frame, every rule    mpsc(8)       │ keep / escalate
//!                   or lossless                                                                      ▼
//!   broker ◀── mqtt::Link ◀── outbox ◀── event ◀── span: new / update / end ◀── outcome ◀── pool: HTTPS or MQTT
//! ```
#![forbid(unsafe_code)]

pub mod ask;
pub mod backoff;
pub mod cli;
pub mod exit;
pub mod mqtt;
pub mod openai;
pub mod pool;
