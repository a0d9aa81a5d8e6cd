//! A discrete-event simulation of a whole agent: the pipeline's own wiring, in an [`Environment`]
//! whose clock stands still between events and whose chance comes from a seed, with in-memory
//! doubles of cameras, pools and the broker. Days pass in seconds, and a seed repeats its day.
//!
//! [`laws`] judges what was seen; [`mutants`] are faults that it has to find.

mod broker;
mod cameras;
mod chance;
pub(crate) mod laws;
mod pools;

use std::sync::Arc;
use std::time::Duration;

use firmware_config::agent::AgentConfig;
use tokio::sync::watch;
use tokio::time::sleep;
use vlm::{Answer, Identity, Request, Sink, VlmError};

use self::broker::{BrokerDouble, Seen};
use self::cameras::CameraDoubles;
use self::chance::Chance;
use self::laws::Witness;
use self::pools::PoolDoubles;
use crate::clock::Clock;
use crate::environment::Environment;
use crate::infer::Answerer;
use crate::infer::tests::Scripted;
use crate::metrics::Totals;
use crate::mutants::{self, Mutant};
use crate::random::Random;
use crate::{infer, pipeline};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// The end of each run, in which nothing fails any more: what is left has to arrive.
const CALM: Duration = Duration::from_secs(600);
/// Simulated days in CI.
const SEEDS: std::ops::RangeInclusive<u64> = 1..=20;

const CONFIG: &str = r#"
[node]
id = "sim"
[model]
bundle = "/nowhere"
[mqtt]
url = "mqtt://127.0.0.1:1883"
outbox-events = 40
[[camera]]
id = "yard"
source = "rtsp://192.0.2.7/1"
rate = "1/10s"
gate = { motion = 0.01, max-age = "60s" }
stall-after = "30s"
[[camera.rule]]
id = "person"
question = "Is there a person?"
answers = ["yes", "no"]
alert = ["yes"]
pool = "web"
[[camera.rule]]
id = "parcel"
question = "Is there a parcel?"
answers = ["yes", "no"]
route = "must-escalate"
pool = "site"
[[camera]]
id = "gate"
source = "rtsp://192.0.2.7/2"
rate = "1/15s"
[[camera.rule]]
id = "open"
question = "Is the gate open?"
answers = ["yes", "no"]
alert = ["no"]
[[pool]]
id = "web"
url = "https://pool.example/v1"
model = "m"
deadline = "8s"
usd-per-call = 0.001
[[pool]]
id = "site"
mqtt = true
model = "m"
deadline = "5s"
[policy]
calls-per-minute = 12
in-flight = 3
"#;

/// What one run showed.
struct Run {
    witness: Arc<Witness>,
    seen: Seen,
    totals: Totals,
    pools: PoolDoubles,
}

/// Runs an agent for `length` of simulated time, and then stops it.
fn run(seed: u64, length: Duration, traced: bool) -> Run {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(simulate(seed, length, traced))
}

async fn simulate(seed: u64, length: Duration, traced: bool) -> Run {
    let config = AgentConfig::parse(CONFIG, "simulation.toml").expect("a configuration");
    let clock = Clock::simulated("2027-01-01T00:00:00Z".parse().expect("a time"));
    let (stop, stopping) = watch::channel(false);
    let calm_from = length.saturating_sub(CALM);

    // Each double draws from a sequence of its own, so that a change to one does not shift another.
    let world = Random::seeded(seed);
    let chance = |clock: &Clock| Chance::new(world.number(), clock.clone(), calm_from);
    let broker = BrokerDouble::new(chance(&clock));
    let pools = PoolDoubles::new(chance(&clock));
    let environment = Environment {
        cameras: Arc::new(CameraDoubles::new(chance(&clock), stopping)),
        pools: Arc::new(pools.clone()),
        brokers: Arc::new(broker.clone()),
        random: Random::seeded(world.number()),
        clock: clock.clone(),
    };
    let (says, takes, fails) = (chance(&clock), chance(&clock), chance(&clock));
    let model = ModelDouble(
        Scripted::new(move |_| (says.answer().into(), says.confidence())),
        fails,
    );
    let (model, inference) = infer::channel(model);
    tokio::spawn(inference.run_simulated(move || takes.between(0.05, 0.9)));

    let witness = Arc::new(Witness::new(clock.clone()));
    if traced {
        witness.start_trace();
    }
    let shutdown = async {
        sleep(length).await;
        witness.stopped();
        let _ = stop.send(true);
    };
    let totals = pipeline::run_in(environment, model, config, witness.clone(), shutdown)
        .await
        .expect("the agent does not fail");
    let seen = broker.seen();
    Run {
        witness,
        seen,
        totals,
        pools,
    }
}

/// A model that fails now and then.
struct ModelDouble(Scripted, Chance);

impl Answerer for ModelDouble {
    fn identity(&self) -> &Identity {
        self.0.identity()
    }

    fn answer(&mut self, request: &Request, sink: &mut dyn Sink) -> Result<Answer, VlmError> {
        match self.1.fails(0.01) {
            true => Err(VlmError::NoEndToken),
            false => self.0.answer(request, sink),
        }
    }
}

/// What broke, for people; empty when every law held.
fn violations(run: &Run) -> Vec<String> {
    let mut found = laws::violations(&run.witness, &run.seen, &run.totals);
    found.extend(run.pools.violations());
    found
}

#[test]
fn every_law_holds_for_twenty_days() {
    let seeds: Vec<u64> = SEEDS.collect();
    std::thread::scope(|scope| {
        for half in seeds.chunks(seeds.len().div_ceil(2)) {
            scope.spawn(move || {
                for &seed in half {
                    let run = run(seed, DAY, false);
                    assert_eq!(violations(&run), Vec::<String>::new(), "seed {seed}");
                    run.assert_eventful(seed);
                }
            });
        }
    });
}

#[test]
fn a_seed_repeats_its_day() {
    let trace = |seed| run(seed, DAY / 24, true).witness.trace();
    assert_eq!(trace(3), trace(3));
    assert_ne!(trace(3), trace(4));
}

#[test]
fn every_mutant_is_found() {
    for (mutant, law) in [
        (Mutant::LostOutcome, "no outcome"),
        (Mutant::UndeclaredGap, "neither received nor declared"),
        (Mutant::EventAfterEnd, "after its end"),
        (Mutant::FrameAfterStop, "after the stop"),
        (Mutant::ClosedBreaker, "in an outage of"),
        (Mutant::StaleState, "is retained"),
    ] {
        let _active = mutants::activate(mutant);
        let found = violations(&run(1, DAY / 4, false));
        assert!(
            found.iter().any(|violation| violation.contains(law)),
            "{mutant:?} broke no law about {law:?}: {found:?}"
        );
    }
}

impl Run {
    /// A day in which little happened proves little.
    fn assert_eventful(&self, seed: u64) {
        let totals = &self.totals;
        for (what, count) in [
            ("local answers", totals.answers_local),
            ("answers of pools", totals.pool_answered),
            ("failed calls", totals.pool_failed),
            ("bad frames", totals.frames_bad),
            ("skipped frames", totals.frames_skipped),
            ("camera restarts", totals.camera_restarts),
            ("failed answers", totals.answers_failed),
            ("events published", totals.events_published),
            ("events dropped", totals.events_dropped),
            ("events repeated", totals.events_repeated),
            ("commands refused", totals.commands_refused),
            ("unmatched replies", totals.replies_unmatched),
        ] {
            assert!(count > 0, "seed {seed}: no {what} in a day: {totals:?}");
        }
    }
}
