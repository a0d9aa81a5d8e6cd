//! The test rig: synthetic checkpoints, real brokers, scripted models and pools, for the
//! integration tests and the benches.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

pub mod broker;
pub mod bundles;
pub mod config;
pub mod hub_server;
pub mod kept;
pub mod ledger;
pub mod pool_server;
pub mod rtsp;
pub mod scripted;
pub mod started;
pub mod subscriber;
pub mod synth;
pub mod transformers;

/// An HTTP client for servers on loopback.
///
/// # Panics
/// When it cannot be made.
pub fn http_client() -> reqwest::Client {
    // A provider that is installed already is just as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().build().unwrap()
}

/// A file of `tests/data`.
pub fn data(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("data")
        .join(name)
}

/// A file or folder of the demo.
///
/// # Panics
/// When it does not exist.
pub fn demo(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../demo")
        .join(name)
        .canonicalize()
        .unwrap()
}

/// Path of a program of the workspace, built in the profile of the running test.
///
/// # Panics
/// When it has not been built.
pub fn program(name: &str) -> std::path::PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test
        .ancestors()
        .nth(2)
        .expect("test binaries are in target/<profile>/deps")
        .join(name);
    assert!(
        path.is_file(),
        "{}: not built; tests/run.sh builds it, or cargo build --release --workspace --bins",
        path.display()
    );
    path
}
