//! Pools that answer, answer nonsense, fail, and are silent.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::json;
use tokio::time::sleep;

use super::chance::Chance;
use crate::pool::PoolsError;
use crate::pool::retry::{AttemptFailure, Class};
use crate::pool::transport::{Attempt, Connector, Transport};

/// Makes pools that share their faults.
#[derive(Debug)]
pub(super) struct PoolDoubles(Arc<Chance>);

#[derive(Debug)]
struct PoolDouble(Arc<Chance>);

impl PoolDoubles {
    pub(super) fn new(chance: Chance) -> Self {
        PoolDoubles(Arc::new(chance))
    }
}

impl Connector for PoolDoubles {
    fn connect(&self, _: &str, _: Option<&Path>) -> Result<Box<dyn Transport>, PoolsError> {
        Ok(Box::new(PoolDouble(Arc::clone(&self.0))))
    }
}

impl Transport for PoolDouble {
    fn attempt<'a>(&'a self, _: Attempt<'a>) -> BoxFuture<'a, Result<Bytes, AttemptFailure>> {
        async {
            let chance = &self.0;
            sleep(chance.between(0.1, 2.0)).await;
            if chance.outage(7_200.0, 300.0) {
                let class = Class::Unhealthy { wait: None };
                return Err(AttemptFailure::unreachable(class, "connection refused"));
            }
            if chance.fails(0.02) {
                std::future::pending::<()>().await;
            }
            if chance.fails(0.05) {
                return Err(AttemptFailure::status(503, Some("1"), "overloaded"));
            }
            if chance.fails(0.02) {
                return Err(AttemptFailure::status(400, None, "no"));
            }
            Ok(reply(chance))
        }
        .boxed()
    }
}

/// A chat completion; now and then one without an answer.
pub(super) fn reply(chance: &Chance) -> Bytes {
    let content = if chance.fails(0.03) {
        "who knows".to_owned()
    } else {
        json!({ "answer": chance.answer() }).to_string()
    };
    let completion = json!({
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "double",
        "choices": [{
            "index": 0,
            "message": { "role": "assistant", "content": content },
            "finish_reason": "stop",
        }],
    });
    completion.to_string().into()
}
