//! One integration binary: every test drives real components through the rig.
#![allow(clippy::unwrap_used, missing_docs)]

mod agent;
mod ask;
mod brokers;
mod bundle;
mod cameras;
mod delivery;
mod demo;
mod exact;
mod examples;
mod export;
mod exporter_cli;
mod gateway;
mod licences;
mod metrics;
mod pool;
mod tidy;
mod topics;
mod trained;
mod verify;
mod worker;
