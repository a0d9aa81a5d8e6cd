//! Requests are read one at a time: while its images are decoded, a request may need hundreds of
//! megabytes more than afterwards.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Semaphore;

use super::ChatQuestion;
use crate::openai::ApiError;

/// Reads requests on a thread that may block, one at a time.
#[derive(Debug)]
pub struct Reader {
    permit: Arc<Semaphore>,
}

impl Default for Reader {
    fn default() -> Self {
        Reader {
            permit: Arc::new(Semaphore::new(1)),
        }
    }
}

impl Reader {
    /// Reads and checks a request's body once those before it have been read.
    ///
    /// # Errors
    /// As [`read`](super::read).
    pub async fn read(&self, body: Bytes) -> Result<ChatQuestion, ApiError> {
        let internal = || {
            ApiError::server(
                500,
                "internal",
                "reading the request panicked; please report it with the request",
            )
        };
        let permit = Arc::clone(&self.permit)
            .acquire_owned()
            .await
            .map_err(|_| internal())?;
        let reading = tokio::task::spawn_blocking(move || {
            let question = super::read(&body);
            // Held by the blocking task, which goes on when the future of its caller is dropped.
            drop(permit);
            question
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
        let another = Arc::clone(&reader.permit)
            .acquire_owned()
            .await
            .expect("the semaphore is open");
        let mut reading = Box::pin(reader.read(Bytes::from_static(b"{}")));
        assert!(
            reading.as_mut().now_or_never().is_none(),
            "waits while another request is read"
        );
        drop(another);
        assert_eq!(
            reading
                .await
                .expect_err("the body has no messages")
                .param
                .as_deref(),
            Some("messages")
        );
    }
}
