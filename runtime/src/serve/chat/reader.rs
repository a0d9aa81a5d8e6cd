//! Requests read one at a time: while its pictures are decoded, one may take hundreds of megabytes
//! more than it holds afterwards.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Semaphore;

use super::Asked;
use crate::serve::openai::ApiError;

/// Reads requests for whoever serves them, on a thread that may block.
#[derive(Debug)]
pub struct Reader {
    turn: Arc<Semaphore>,
}

impl Default for Reader {
    fn default() -> Self {
        Reader {
            turn: Arc::new(Semaphore::new(1)),
        }
    }
}

impl Reader {
    /// Reads and checks a request's body once those before it have been read.
    ///
    /// # Errors
    /// As [`read`](super::read).
    pub async fn read(&self, body: Bytes) -> Result<Asked, ApiError> {
        let internal = || {
            ApiError::server(
                500,
                "internal",
                "reading the request failed; please report it with the request",
            )
        };
        let turn = Arc::clone(&self.turn)
            .acquire_owned()
            .await
            .map_err(|_| internal())?;
        let reading = tokio::task::spawn_blocking(move || {
            let asked = super::read(&body);
            // Not before: a reading goes on after whoever asked for it has left.
            drop(turn);
            asked
        });
        reading.await.map_err(|_| internal())?
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn one_request_is_read_at_a_time() {
        let reader = Reader::default();
        let another = Arc::clone(&reader.turn)
            .acquire_owned()
            .await
            .expect("it is nobody's turn");
        let mut reading = Box::pin(reader.read(Bytes::from_static(b"{}")));
        assert!(
            reading.as_mut().now_or_never().is_none(),
            "not while another one is read"
        );
        drop(another);
        assert_eq!(
            reading
                .await
                .expect_err("there is no message in it")
                .param
                .as_deref(),
            Some("messages")
        );
    }
}
