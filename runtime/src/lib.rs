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
pub mod budget;
pub mod capture;
pub mod chat;
pub mod cli;
pub mod clock;
pub mod demo;
pub mod event;
pub mod exit;
pub mod gate;
pub mod gateway;
pub mod handoff;
pub mod inbox;
pub mod infer;
pub mod labels;
mod memory;
pub mod metrics;
pub mod mqtt;
pub mod openai;
pub mod outbox;
pub mod pipeline;
pub mod policy;
pub mod pool;
pub mod publisher;
pub mod record;
pub mod router;
pub mod run;
pub mod scene;
pub mod serve;
pub mod server;
pub mod span;
pub mod worker;
