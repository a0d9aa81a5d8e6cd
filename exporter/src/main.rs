//! `egret-export`: a checkpoint in, a verified bundle out.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    exporter::cli::main()
}
