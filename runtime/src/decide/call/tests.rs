//! What is in the way of a call, and what a call uses, over a scripted pool.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use firmware_config::agent::{AgentConfig, KillSwitch};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::*;
use crate::pool::retry::{AttemptFailure, Class};
use crate::pool::transport::{Attempt, Connector, Transport};

/// What the pool does with each attempt.
#[derive(Debug, Clone, Copy, PartialEq)]
enum PoolAct {
    Say(&'static str),
    Refuse,
    BeSilent,
}

#[derive(Debug, Clone)]
struct Pool {
    act: PoolAct,
    attempts: Arc<AtomicU32>,
}

impl Connector for Pool {
    fn connect(&self, _: &str, _: Option<&Path>) -> Result<Box<dyn Transport>, PoolsError> {
        Ok(Box::new(self.clone()))
    }
}

impl Transport for Pool {
    fn attempt<'a>(&'a self, _: Attempt<'a>) -> BoxFuture<'a, Result<Bytes, AttemptFailure>> {
        self.attempts.fetch_add(1, Ordering::Relaxed);
        match self.act {
            PoolAct::Say(content) => {
                let reply = serde_json::json!({"model": "m", "choices": [{"message": {"content": content}}]});
                std::future::ready(Ok(reply.to_string().into())).boxed()
            }
            PoolAct::Refuse => {
                let class = Class::Unhealthy { wait: None };
                std::future::ready(Err(AttemptFailure::unreachable(class, "refused"))).boxed()
            }
            PoolAct::BeSilent => std::future::pending().boxed(),
        }
    }
}

/// Everything a call needs, with `rest` of a configuration.
fn escalations(act: PoolAct, rest: &str) -> Escalations {
    let text = format!(
        "[node]\nid = \"a\"\n[model]\nbundle = \"/b\"\n[[camera]]\nid = \"c\"\nsource = \"dir:///d\"\n\
         [[pool]]\nid = \"big\"\nurl = \"https://pool.example/v1\"\nmodel = \"m\"\ndeadline = \"8s\"\n{rest}"
    );
    let config = AgentConfig::parse(&text, "egret.toml").expect("a configuration");
    let pool = Pool {
        act,
        attempts: Arc::default(),
    };
    let environment = Environment {
        pools: Arc::new(pool),
        ..Environment::system()
    };
    Escalations::new(&config.pools, &config.policy, None, "a", &environment).expect("pools")
}

fn prepare(escalations: &Escalations, images: bool) -> Result<Call, EscalationError> {
    let pool = escalations.pools.get("big");
    escalations.prepare(pool, images, [1; 16], |_| Bytes::from_static(b"12345"))
}

#[tokio::test(start_paused = true)]
async fn a_denied_call_sends_nothing_and_says_why() {
    for (rest, error) in [
        (
            "images = false\n",
            "NO_CAPABLE_MODEL pool big: takes no images",
        ),
        (
            "[policy]\ncalls-per-minute = 0\n",
            "BUDGET_CALLS pool big: a budget of the policy is used up",
        ),
        (
            "[policy]\nbytes-per-minute = \"14B\"\n",
            "BUDGET_BYTES pool big: a budget of the policy is used up",
        ),
        (
            "usd-per-call = 0.01\n[policy]\nusd-per-day = 0.02\n",
            "BUDGET_USD pool big: a budget of the policy is used up",
        ),
    ] {
        let denied = prepare(&escalations(PoolAct::Say("yes"), rest), true).expect_err(rest);
        assert_eq!(format!("{} {denied}", denied.reason.as_str()), error);
    }
    let escalations = escalations(PoolAct::Say("yes"), "[policy]\nin-flight = 1\n");
    let first = prepare(&escalations, true).expect("the first");
    assert_eq!(
        prepare(&escalations, true).expect_err("the second").reason,
        Reason::Busy
    );
    drop(first);
    let none = escalations.prepare(None, true, [1; 16], |_| Bytes::new());
    assert_eq!(none.expect_err("no pool").reason, Reason::NoCapableModel);
}

#[tokio::test(start_paused = true)]
async fn an_answer_comes_with_what_it_took() {
    let escalations = escalations(PoolAct::Say("Yes."), "usd-per-call = 0.01\n");
    let call = prepare(&escalations, true).expect("nothing is in the way");
    let called = call.make(std::future::pending()).await;
    let called = called.settle(&["yes".into(), "no".into()]);
    let settled = called.result.expect("an answer");
    assert_eq!(
        (settled.text.as_str(), settled.by.pool.as_deref()),
        ("yes", Some("big"))
    );
    assert_eq!((called.spent.attempts, called.spent.bytes_up), (1, 5));
    assert_eq!(called.cost_usd, Some(0.01));
}

#[tokio::test(start_paused = true)]
async fn a_reply_without_an_answer_is_an_invalid_format() {
    let escalations = escalations(PoolAct::Say("perhaps"), "");
    let call = prepare(&escalations, true).expect("nothing is in the way");
    let called = call
        .make(std::future::pending())
        .await
        .settle(&["yes".into()]);
    let error = called.result.expect_err("no answer");
    assert_eq!(error.reason, Reason::InvalidFormat);
    assert_eq!(
        error.to_string(),
        "pool big: expected one of yes, got \"perhaps\""
    );
}

#[tokio::test(start_paused = true)]
async fn an_open_breaker_is_in_the_way_of_the_next_call() {
    let escalations = escalations(PoolAct::Refuse, "");
    let call = prepare(&escalations, true).expect("nothing is in the way");
    let called = call.make(std::future::pending()).await;
    let error = called.result.expect_err("no answer");
    assert_eq!(error.to_string(), "pool big: refused (attempts made: 3)");
    assert_eq!(called.spent.charged, 0, "the pool saw none of them");
    let denied = prepare(&escalations, true).expect_err("the breaker is open");
    assert_eq!(denied.reason, Reason::BreakerOpen);
    tokio::time::sleep(Duration::from_secs(31)).await;
    assert!(prepare(&escalations, true).is_ok(), "half-open: one trial");
}

#[tokio::test(start_paused = true)]
async fn a_call_ends_early_by_deadline_cancel_and_kill_switch() {
    let silent = escalations(PoolAct::BeSilent, "");
    let call = || prepare(&silent, true).expect("nothing is in the way");

    let late = call().make(std::future::pending()).await;
    let error = late.result.expect_err("no answer");
    assert_eq!(error.to_string(), "pool big: no answer within 8s");
    assert_eq!(
        (error.reason, late.latency.as_secs()),
        (Reason::Deadline, 8)
    );

    let cancel = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        EscalationError::new(Reason::Deadline, "the agent stops")
    };
    let cancelled = call().make(cancel).await;
    assert_eq!(
        cancelled.result.expect_err("no answer").to_string(),
        "the agent stops"
    );
    assert_eq!(
        (cancelled.spent.attempts, cancelled.latency.as_secs()),
        (1, 1)
    );

    let made = call().make(std::future::pending());
    let forbid = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        silent.policy.set_kill_switch(KillSwitch::LocalOnly);
    };
    let (called, ()) = tokio::join!(made, forbid);
    let error = called.result.expect_err("no answer");
    assert_eq!(
        (error.reason, called.latency.as_secs()),
        (Reason::KillSwitch, 2)
    );
}

#[tokio::test(start_paused = true)]
async fn a_call_that_was_not_made_counts_against_no_budget() {
    let escalations = escalations(PoolAct::BeSilent, "[policy]\ncalls-per-minute = 1\n");
    let call = prepare(&escalations, true).expect("nothing is in the way");
    let now = std::future::ready(EscalationError::new(Reason::Deadline, "the agent stops"));
    assert_eq!(call.make(now).await.spent.attempts, 0);
    assert!(
        prepare(&escalations, true).is_ok(),
        "the budget of one call is unspent"
    );
}
