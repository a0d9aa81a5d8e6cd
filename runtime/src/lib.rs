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
//! | decides that a frame is skipped | [`gate`] | yes |
//! | asks every rule about a frame, and pools beside it | [`scene`] | |
//! | owns the model | [`infer`] | |
//! | decides who settles an answer, and why | [`router`] | yes |
//! | makes one escalation: what is in its way, what it may cost | [`call`] | |
//! | holds escalations to budgets and the kill switch | [`policy`], [`budget`] | the ledger |
//! | asks a bigger model | [`pool`] | breaker, retry, question, reading |
//! | turns an answer, or a pool's later one, into events | [`span`], [`event`], [`topics`] | yes |
//! | keeps events until they are acknowledged | [`outbox`] | yes |
//! | sends, and sends again when the broker was gone | [`publisher`], [`mqtt`] | |
//!
//! [`pipeline`] makes the threads, tasks and queues between them; [`gateway`] and [`worker`] offer the same model and router to OpenAI
//! clients and to other boxes; [`demo`] is [`pipeline`] on bundled cameras.
#![forbid(unsafe_code)]

pub mod ask;
pub mod backoff;
pub mod budget;
pub mod call;
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
pub mod preflight;
pub mod publisher;
pub mod record;
pub mod router;
pub mod run;
pub mod scene;
pub mod serve;
pub mod server;
pub mod sighting;
pub mod span;
pub mod topics;
pub mod worker;
