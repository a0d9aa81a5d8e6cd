//! Pools over HTTPS against a server that does everything a server can do wrong.

use std::time::Duration;

use bytes::Bytes;
use firmware_config::agent::{ClosedForm, Pool, PoolTransport};
use runtime::environment::Environment;
use runtime::pool::{EscalationError, PoolQuestion, Pools, Spent};
use runtime::reason::Reason;
use runtime::settled::Settled;
use tests::pool_server::{Act, PoolServer};

const DEADLINE: Duration = Duration::from_secs(5);

fn pool(url: String) -> Pool {
    Pool {
        id: "big".into(),
        transport: PoolTransport::Https {
            url,
            api_key_file: None,
        },
        model: "some-vlm".into(),
        deadline: DEADLINE,
        closed: ClosedForm::Schema,
        images: true,
        attempts: 3,
        usd_per_call: None,
    }
}

fn question() -> PoolQuestion {
    PoolQuestion {
        id: [9; 16],
        question: "Is there a person?".into(),
        answers: vec!["yes".into(), "no".into()],
        jpeg: Some(Bytes::from_static(b"\xff\xd8\xff")),
        max_tokens: 16,
    }
}

fn pools(pool: Pool) -> Pools {
    Environment::system()
        .connect_pools(&[pool], None, "gate-01")
        .unwrap()
}

/// What came of one question.
#[derive(Debug)]
struct Asked {
    result: Result<Settled, EscalationError>,
    spent: Spent,
}

impl Asked {
    /// The code, the number of attempts, and the text of a failure.
    fn failure(&self) -> (&'static str, u32, String) {
        match &self.result {
            Ok(answer) => panic!("answered: {answer:?}"),
            Err(error) => (
                error.reason.as_str(),
                self.spent.attempts,
                error.to_string(),
            ),
        }
    }
}

async fn ask(pools: &Pools) -> Asked {
    let mut spent = Spent::default();
    let result = pools.ask("big", &question(), &mut spent).await;
    Asked { result, spent }
}

/// Asks once, and returns the outcome with the number of requests that the server saw.
async fn outcome(acts: impl IntoIterator<Item = Act>) -> (Asked, usize) {
    let server = PoolServer::start(acts).await;
    let asked = ask(&pools(pool(server.url()))).await;
    (asked, server.seen().len())
}

#[tokio::test]
async fn an_answer_comes_back_with_what_it_took() {
    let server = PoolServer::start([Act::Say(r#"{"answer": "yes"}"#)]).await;
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key");
    std::fs::write(&key, "sesame\n").unwrap();
    let transport = PoolTransport::Https {
        url: server.url(),
        api_key_file: Some(key),
    };
    let pools = pools(Pool {
        transport,
        ..pool(String::new())
    });
    let Asked { result, spent } = ask(&pools).await;
    let answer = result.unwrap();
    assert_eq!(
        (
            answer.text.as_str(),
            answer.by.model.as_str(),
            answer.by.tokens_out
        ),
        ("yes", "scripted-7b", Some(2))
    );
    assert_eq!(spent.attempts, 1);
    let body = runtime::pool::question::body(&question(), pools.get("big").unwrap());
    assert_eq!(spent.bytes_up, body.len() as u64);
    let [seen] = &server.seen()[..] else {
        panic!("one request")
    };
    assert_eq!(seen.headers["authorization"], "Bearer sesame");
    assert_eq!(
        seen.headers["idempotency-key"],
        "09090909-0909-0909-0909-090909090909"
    );
    assert_eq!(seen.body["model"], "some-vlm");
    assert_eq!(
        seen.body["messages"][0]["content"][0]["image_url"]["url"],
        "data:image/jpeg;base64,/9j/"
    );
}

#[tokio::test]
async fn what_may_pass_is_tried_again() {
    for act in [
        Act::Status(429, Some("0")),
        Act::Status(500, None),
        Act::Status(503, Some("0")),
        Act::Status(408, None),
        Act::HalfABody,
    ] {
        let (asked, requests) = outcome([act.clone(), Act::Say("yes")]).await;
        let answer = asked
            .result
            .unwrap_or_else(|error| panic!("{act:?}: {error}"));
        assert_eq!(
            (answer.text.as_str(), asked.spent.attempts, requests),
            ("yes", 2, 2),
            "{act:?}"
        );
    }
}

#[tokio::test]
async fn what_will_not_pass_is_not_tried_again() {
    for status in [400, 401, 403, 404, 413, 422] {
        let (asked, requests) = outcome([Act::Status(status, None)]).await;
        let (code, attempts, text) = asked.failure();
        assert_eq!(
            (code, attempts, requests),
            ("FALLBACK", 1, 1),
            "{status}: {text}"
        );
    }
}

#[tokio::test]
async fn a_wait_beyond_the_deadline_is_not_begun() {
    let (asked, requests) = outcome([Act::Status(429, Some("60"))]).await;
    let (code, attempts, text) = asked.failure();
    assert_eq!((code, attempts, requests), ("FALLBACK", 1, 1), "{text}");
}

#[tokio::test]
async fn what_is_no_answer_is_an_invalid_format() {
    for (act, part) in [
        (Act::Say("perhaps"), "expected one of yes, no"),
        (Act::Say("yes or no"), "expected one of yes, no"),
        (
            Act::Body("<html>welcome to the airport</html>"),
            "expected a chat completion",
        ),
        (
            Act::Body(r#"{"error": {"message": "out of credit"}}"#),
            "out of credit",
        ),
        (Act::Body(r#"{"choices": []}"#), "no choices"),
    ] {
        let (asked, requests) = outcome([act]).await;
        let (code, attempts, text) = asked.failure();
        assert_eq!(
            (code, attempts, requests),
            ("INVALID_FORMAT", 1, 1),
            "{text}"
        );
        assert!(text.contains(part), "{text}");
    }
}

#[tokio::test]
async fn a_server_that_hangs_costs_one_deadline() {
    let server = PoolServer::start([Act::Hang]).await;
    let pools = pools(Pool {
        deadline: Duration::from_millis(200),
        ..pool(server.url())
    });
    let (code, attempts, text) = ask(&pools).await.failure();
    assert_eq!((code, attempts), ("DEADLINE", 1), "{text}");
}

#[tokio::test]
async fn the_breaker_opens_for_a_pool_that_is_down_and_not_for_one_that_says_no() {
    let down = PoolServer::start([Act::Status(503, Some("0"))]).await;
    let pools_down = pools(pool(down.url()));
    let (code, attempts, text) = ask(&pools_down).await.failure();
    assert_eq!((code, attempts), ("FALLBACK", 3), "{text}");
    assert_eq!(pools_down.obstacle("big"), Some(Reason::BreakerOpen));
    let (code, attempts, text) = ask(&pools_down).await.failure();
    assert_eq!((code, attempts), ("BREAKER_OPEN", 0), "{text}");
    assert_eq!(down.seen().len(), 3, "an open breaker sends nothing");

    let strict = PoolServer::start([Act::Status(400, None)]).await;
    let pools_strict = pools(pool(strict.url()));
    for _ in 0..4 {
        assert!(ask(&pools_strict).await.result.is_err());
    }
    assert_eq!(pools_strict.obstacle("big"), None);
}

#[tokio::test]
async fn a_port_without_a_listener_is_a_failure_after_retries() {
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let pools = pools(pool(format!("http://127.0.0.1:{port}/v1")));
    let (code, attempts, text) = ask(&pools).await.failure();
    assert_eq!((code, attempts), ("FALLBACK", 3), "{text}");
    assert!(text.contains("cannot connect"), "{text}");
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let elsewhere = PoolServer::start([Act::Say("yes")]).await;
    let redirect = Act::Redirect(format!("{}/chat/completions", elsewhere.url()));
    let (asked, _) = outcome([redirect]).await;
    let (code, attempts, text) = asked.failure();
    assert_eq!((code, attempts), ("FALLBACK", 1), "{text}");
    assert!(
        elsewhere.seen().is_empty(),
        "the image went to a host that is not configured"
    );
}

#[tokio::test]
async fn a_key_that_cannot_be_read_sends_nothing() {
    let server = PoolServer::start([Act::Say("yes")]).await;
    let transport = PoolTransport::Https {
        url: server.url(),
        api_key_file: Some("/nonexistent/key".into()),
    };
    let pools = pools(Pool {
        transport,
        ..pool(String::new())
    });
    let (code, _, text) = ask(&pools).await.failure();
    assert_eq!(code, "FALLBACK");
    assert!(text.contains("/nonexistent/key"), "{text}");
    assert!(server.seen().is_empty());
}
