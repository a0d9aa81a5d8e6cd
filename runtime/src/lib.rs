//! Egret, the agent: camera frames in, answers settled on the box or by a pool, events out.
//!
//! ```text
//!  devices::Camera                                   vlm::Vlm, on one thread
//!        │                                                 ▲ questions of one frame share its prefix
//!        ▼ frame                                           ▼ local answer
//!    capture ─▶ gate ─admit─▶ handoff ─────▶ scene ─▶  infer ─▶ router ─▶ keep ───────────┐
//!                └ skip, and why    (latest,   ▲                └▶ escalate, and why      │
//!                                   or every)  │                        ▼                 ▼
//!                                              └── outcome ◀──── call ─▶ pool ─▶ …      span: new / update / end
//!                                                                 HTTPS │ MQTT             │ event
//!                  broker ◀── mqtt::Link ◀── publisher ◀── outbox: (epoch, seq) ◀──────────┘
//!                    └─▶ inbox: replies of pools, kill switch
//! ```
//!
//! | step | module | pure |
//! |---|---|---|
//! | reads a source, opens it again when it fails | [`capture`] | |
//! | decides that a frame is skipped | [`capture::gate`] | yes |
//! | asks every rule about a frame, and pools beside it | [`scene`] | |
//! | owns the model | [`infer`] | |
//! | decides who settles an answer, and why | [`decide::router`] | yes |
//! | makes one escalation: what is in its way, what it may cost | [`decide::call`] | |
//! | holds escalations to budgets and the kill switch | [`decide::policy`], [`decide::budget`] | the ledger |
//! | asks a bigger model | [`pool`] | breaker, retry, question, reading |
//! | turns an answer, or a pool's later one, into events | [`deliver::span`], [`deliver::event`], [`deliver::topics`] | yes |
//! | keeps events until they are acknowledged | [`deliver::outbox`] | yes |
//! | sends, and sends again when the broker was gone | [`deliver::publisher`], [`deliver::mqtt`] | |
//!
//! [`pipeline`] makes the threads, tasks and queues between them; [`serve`] offers the same model
//! and router to OpenAI clients and to other boxes; [`commands::demo`] is [`pipeline`] on bundled
//! cameras.
#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(clippy::disallowed_methods, reason = "tests set the time themselves")
)]

pub mod capture;
pub mod commands;
pub mod decide;
pub mod deliver;
pub mod environment;
pub mod infer;
mod json;
pub mod metrics;
pub mod observe;
pub mod pipeline;
pub mod pool;
pub mod scene;
pub mod serve;
#[cfg(test)]
mod simulation;
