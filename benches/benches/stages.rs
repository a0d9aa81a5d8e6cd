//! Each stage that a frame passes on the device.
//!
//! Budgets: the gate and the router must be negligible within a camera's frame interval (33 ms):
//! the gate under 1 ms for 480x270, a routing decision under a microsecond. Preprocessing one tile
//! must take less than a tenth of a run of the vision encoder. `answer` is a complete local answer
//! on the demo's bundle: the first question on a frame includes the vision encoder and the prefill
//! of the prefix, the second only its own tokens.
//!
//! `cargo bench -p benches`
#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::Duration;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use firmware_config::agent::{Gate as GateSettings, KillSwitch, RouteMode};
use firmware_config::manifest::ImageRules;
use runtime::capture::gate::{Gate, Thumbnail};
use runtime::decide::router::{RouteSettings, route};
use vlm::{BackendChoice, Options, Picture, Request, Vlm, tiles};

fn demo(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../demo")
        .join(path)
}

fn frame() -> Picture {
    Picture::decode(&std::fs::read(demo("frames/lobby/035000.jpg")).unwrap()).unwrap()
}

fn gate(c: &mut Criterion) {
    let picture = frame();
    let thumbnail =
        || Thumbnail::of_rgb(picture.width(), picture.height(), picture.pixels()).unwrap();
    c.bench_function("gate/thumbnail 480x270", |b| b.iter(thumbnail));
    c.bench_function("gate/decide", |b| {
        let gate = Gate::new(GateSettings {
            motion: 0.01,
            max_age: Duration::from_secs(30),
        });
        b.iter_batched(
            thumbnail,
            |thumbnail| gate.decide(&thumbnail, Duration::ZERO),
            BatchSize::SmallInput,
        );
    });
}

fn router(c: &mut Criterion) {
    let terms = RouteSettings {
        mode: RouteMode::Auto,
        threshold: 0.9,
    };
    c.bench_function("router/route", |b| {
        b.iter(|| route(black_box(0.8), terms, KillSwitch::Off))
    });
}

fn preprocess(c: &mut Criterion) {
    let jpeg = std::fs::read(demo("frames/lobby/035000.jpg")).unwrap();
    c.bench_function("preprocess/decode 480x270 JPEG", |b| {
        b.iter(|| Picture::decode(black_box(&jpeg)).unwrap())
    });
    let picture = frame();
    let rules = ImageRules {
        tile_size: 512,
        longest_edge: 2048,
        mean: [0.5; 3],
        std: [0.5; 3],
        splits_by_default: true,
        tokens_per_tile: 64,
    };
    c.bench_function("preprocess/one tile of 512", |b| {
        b.iter(|| tiles::tiles(&picture, &rules, false))
    });
    c.bench_function("preprocess/split, 13 tiles of 512", |b| {
        b.iter(|| tiles::tiles(&picture, &rules, true))
    });
    let one = tiles::tiles(&picture, &rules, false);
    c.bench_function("preprocess/pixel_values of one tile", |b| {
        b.iter(|| tiles::pixel_values(&one, &rules))
    });
}

fn answer(c: &mut Criterion) {
    let options = Options {
        backend: BackendChoice::Tract,
        ..Options::default()
    };
    let mut vlm = Vlm::open(&demo("bundles/nano-edge"), &options).unwrap();
    let ask = |vlm: &mut Vlm, picture: Picture| {
        let mut request = Request::question(picture, "is there a person?");
        request.candidates = vec!["yes".into(), "no".into()];
        vlm.ask(&request).unwrap().confidence.p
    };
    let frames: Vec<Picture> = ["035000", "044000", "059000"]
        .iter()
        .map(|name| {
            Picture::decode(&std::fs::read(demo(&format!("frames/lobby/{name}.jpg"))).unwrap())
                .unwrap()
        })
        .collect();
    let mut next = frames.iter().cycle();
    c.bench_function("answer/first question on a frame", |b| {
        b.iter(|| ask(&mut vlm, next.next().unwrap().clone()))
    });
    c.bench_function("answer/second question on a frame", |b| {
        b.iter(|| ask(&mut vlm, frames[0].clone()))
    });
}

criterion_group!(stages, gate, router, preprocess, answer);
criterion_main!(stages);
