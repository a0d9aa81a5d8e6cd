//! Egret, the agent: camera frames in, answers settled on the box or by a pool, events out.
//!
//! ```text
//!  devices::Camera                                   vlm::Vlm, on one thread
//!        │                                                 ▲ questions of one frame share its prefix
//!        ▼ frame                                           ▼ local answer
//!    capture ─▶ gate ─admit─▶ handoff ─────▶ scene ─▶  infer ─▶ router ─▶ keep ───────────┐
//!                └ skip, and why    (latest,   ▲                └▶ escalate, and why      │
//!                                   or every)  │                        ▼                 ▼
//!                                              └── called ◀───── call ─▶ pool ─▶ …      span: new / update / end
//!                                                                 HTTPS │ MQTT             │ event
//!                  broker ◀── mqtt::Link ◀── publisher ◀── outbox: (epoch, seq) ◀──────────┘
//!                    └─▶ inbox: replies of pools, kill switch
//! ```
//!
//! Decisions are pure: inputs and the time in, effects out. The tasks and threads around them carry
//! effects out and hand back what came of them.
//!
//! | folder | what happens there | decided by (pure) | carried out by |
//! |---|---|---|---|
//! | [`capture`] | a source is read and opened again; frames are gated | [`gate`](capture::gate) | [`Capture`](capture::Capture), one thread per camera |
//! | [`scene`] | every rule is asked about a frame; answers become events | [`SceneCore`](scene::core::SceneCore) | [`Scene`](scene::Scene), one task per camera |
//! | [`infer`] | the local model answers | | one thread |
//! | [`decide`] | who settles an answer, and what that may cost | [`router`](decide::router), [`budget`](decide::budget) | [`call`](decide::call), [`policy`](decide::policy) |
//! | [`pool`] | a bigger model is asked | [`breaker`](pool::breaker), [`retry`](pool::retry), [`question`](pool::question), [`reading`](pool::reading) | [`Pools`](pool::Pools) |
//! | [`deliver`] | an event is kept until the broker has it | [`span`](deliver::span), [`delivery`](deliver::outbox::delivery) | [`publisher`](deliver::publisher), [`inbox`](deliver::inbox) |
//! | [`mqtt`] | one connection to a broker is kept alive | | [`LinkTask`](mqtt::LinkTask) |
//! | [`serve`] | the same model and router for OpenAI clients and other boxes | | [`gateway`](serve::gateway), [`worker`](serve::worker) |
//! | [`commands`] | one file for each subcommand of `egret` | | |
//!
//! They share a few words: [`settled`] (an answer, and where it came from), [`reason`] (why it was
//! settled there), [`openai`] (the wire format of pools and clients).
//!
//! An [`Environment`](environment::Environment) is the only way to time, chance and the outside;
//! nothing but [`clock`] reads a clock, and nothing but [`random`] draws a number. [`observe`] shows
//! what happens to the log, the [`metrics`] and the demo. [`pipeline`] makes the threads, tasks and
//! queues between the parts and ends them in order; the tests drive the same wiring through
//! simulated days. These modules import each other one way, never in a circle.
#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(clippy::disallowed_methods, reason = "tests set the time themselves")
)]

pub mod backoff;
pub mod capture;
pub mod clock;
pub mod commands;
pub mod decide;
pub mod deliver;
pub mod environment;
pub mod infer;
mod json;
pub mod metrics;
pub mod mqtt;
#[cfg(test)]
mod mutants;
pub mod observe;
pub mod openai;
pub mod pipeline;
pub mod pool;
pub mod random;
pub mod reason;
pub mod scene;
pub mod serve;
pub mod settled;
#[cfg(test)]
mod simulation;
