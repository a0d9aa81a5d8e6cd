//! Pools over doubles: choice, obstacles, and attempts until one answers.

use std::collections::VecDeque;
use std::path::Path;

use firmware_config::agent::{ClosedForm, PoolTransport};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use transport::Connector;

use super::*;

/// What comes of each attempt, in order; the same for every pool.
#[derive(Debug, Clone, Default)]
struct Script(Arc<Mutex<VecDeque<Result<Bytes, AttemptFailure>>>>);

impl Connector for Script {
    fn connect(&self, _: &str, _: Option<&Path>) -> Result<Box<dyn Transport>, PoolsError> {
        Ok(Box::new(self.clone()))
    }
}

impl Transport for Script {
    fn attempt<'a>(&'a self, _: Attempt<'a>) -> BoxFuture<'a, Result<Bytes, AttemptFailure>> {
        let next = self.0.lock().expect("not poisoned").pop_front();
        match next {
            Some(outcome) => std::future::ready(outcome).boxed(),
            None => std::future::pending().boxed(),
        }
    }
}

fn pool(id: &str, images: bool) -> Pool {
    Pool {
        id: id.into(),
        transport: PoolTransport::Https {
            url: "https://pool.example/v1".into(),
            api_key_file: None,
        },
        model: "m".into(),
        deadline: Duration::from_secs(8),
        closed: ClosedForm::Schema,
        images,
        attempts: 3,
        usd_per_call: None,
    }
}

fn pools(
    configs: &[Pool],
    script: impl IntoIterator<Item = Result<Bytes, AttemptFailure>>,
) -> Pools {
    let script = Script(Arc::new(Mutex::new(script.into_iter().collect())));
    let (clock, random) = (Clock::system(), Random::seeded(1));
    Pools::new(configs, None, "gate-01", &script, clock, random).expect("pools")
}

fn says(content: &str) -> Result<Bytes, AttemptFailure> {
    let reply = serde_json::json!({"model": "m", "choices": [{"message": {"content": content}}]});
    Ok(reply.to_string().into())
}

fn question() -> PoolQuestion {
    PoolQuestion {
        id: [9; 16],
        question: "Is there a person?".into(),
        answers: vec!["yes".into(), "no".into()],
        jpeg: None,
        max_tokens: 16,
    }
}

#[tokio::test(start_paused = true)]
async fn failures_that_may_pass_are_tried_again_until_one_answers() {
    let busy = || Err(AttemptFailure::status(503, None, "busy"));
    let pools = pools(&[pool("big", true)], [busy(), busy(), says("yes")]);
    let mut spent = Spent::default();
    let settled = pools
        .ask("big", &question(), &mut spent)
        .await
        .expect("an answer");
    assert_eq!(
        (settled.text.as_str(), spent.attempts, spent.charged),
        ("yes", 3, 1)
    );
}

#[tokio::test(start_paused = true)]
async fn every_failure_carries_its_code() {
    let refused = || Err(AttemptFailure::status(404, None, "no such model"));
    let down = || Err(AttemptFailure::unreachable(Class::LinkDown, "no session"));
    let interrupted = || Err(AttemptFailure::interrupted("connection broke"));
    for (script, code, text) in [
        (
            vec![refused()],
            "FALLBACK",
            "pool big: status 404: no such model (attempts made: 1)",
        ),
        (vec![down()], "LINK_DOWN", "pool big: link down: no session"),
        (
            vec![interrupted(), interrupted(), interrupted()],
            "FALLBACK",
            "pool big: connection broke (attempts made: 3)",
        ),
        (vec![], "DEADLINE", "pool big: no answer within 8s"),
        (
            vec![says("perhaps")],
            "INVALID_FORMAT",
            "pool big: expected one of yes, no, got \"perhaps\"",
        ),
        (
            vec![Ok(Bytes::from_static(
                b"{\"error\":{\"message\":\"out of credit\"}}",
            ))],
            "INVALID_FORMAT",
            "pool big: an error with a status of success: out of credit",
        ),
    ] {
        let pools = pools(&[pool("big", true)], script);
        let error = pools
            .ask("big", &question(), &mut Spent::default())
            .await
            .expect_err(text);
        assert_eq!(
            (error.reason.as_str(), error.to_string().as_str()),
            (code, text)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_unknown_pool_is_not_asked() {
    let pools = pools(&[pool("big", true)], []);
    let error = pools.ask("small", &question(), &mut Spent::default()).await;
    let error = error.expect_err("not configured");
    assert_eq!(error.to_string(), "pool small: is not configured");
    assert_eq!(error.reason, Reason::NoCapableModel);
    assert_eq!(
        (pools.obstacle("small"), pools.obstacle("big")),
        (None, None)
    );
}

#[tokio::test]
async fn the_default_pool_is_the_first_that_takes_the_images() {
    let pools = pools(
        &[pool("blind", false), pool("big", true), pool("other", true)],
        [],
    );
    let id = |images| pools.capable(images).map(|pool| pool.id.as_str());
    assert_eq!((id(true), id(false)), (Some("big"), Some("blind")));
}

#[test]
fn a_pool_over_mqtt_needs_a_broker() {
    let over_mqtt = Pool {
        transport: PoolTransport::Mqtt,
        ..pool("site", true)
    };
    let (clock, random) = (Clock::system(), Random::seeded(1));
    let unused = Script(Arc::default());
    let error = Pools::new(&[over_mqtt], None, "gate-01", &unused, clock, random);
    insta::assert_snapshot!(error.expect_err("no broker"), @"pool site has mqtt = true, but there is no broker; add an [mqtt] table with its url");
}
