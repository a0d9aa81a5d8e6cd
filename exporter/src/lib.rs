//! A SmolVLM2 checkpoint in, a verified bundle of quantized ONNX graphs out.
//!
//! | stage | call | output |
//! |---|---|---|
//! | fetch | [`source::folder`] | a checkpoint folder; that of a [`hub`]'s model is in the cache |
//! | load | [`Checkpoint::open`](checkpoint::Checkpoint::open) | config, names, dtypes, shapes, mapped bytes |
//! | build | [`SmolVlm::new`](arch::smolvlm::SmolVlm::new), [`build`](arch::smolvlm::SmolVlm::build) | a [`Graph`](graph::Graph) for each [`Part`](firmware_config::manifest::Part) |
//! | quantize | [`quantize::quantize`] | the graph in its precision, and the error of each matrix |
//! | write | [`graph::onnx::write`] into a [`Draft`](bundle::Draft) | ONNX files, companions, `manifest.json` with every sha256 |
//! | verify | [`verify::verify`] | a [`VerificationReport`](report::VerificationReport): the bundle against an independent [`reference`](mod@reference) |
//! | judge | [`VerificationReport::verdict`](report::VerificationReport::verdict) | exit code 0 or 1; `report.json` is written into the bundle |
//!
//! Tensor names are in [`arch::smolvlm`] and its two files, and [`graph::builder`] makes each an
//! initializer. Only [`graph::onnx`] knows what ONNX looks like on disk. Modules import each other
//! one way, from `cli` and `export` down to `checkpoint`.
#![forbid(unsafe_code)]

pub mod arch;
pub mod bundle;
pub mod checkpoint;
pub mod cli;
mod export;
pub mod graph;
pub mod hub;
pub mod inspect;
mod interrupt;
mod metadata;
pub mod quantize;
pub mod reference;
pub mod report;
pub mod source;
mod units;
pub mod verify;

pub use export::{ExportError, ExportOptions, export, export_verified};
