//! Permits for requests: how many there are at one time, and how many bytes they hold together.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::openai::ApiError;

/// Requests that are read or answered at one time.
const REQUESTS_MAX: usize = 32;
/// Bytes of bodies and decoded images that all requests hold at one time: two of the largest, or
/// many of the usual ones.
const BYTES_MAX: usize = 512 << 20;

/// The permits that are left.
#[derive(Debug)]
pub(super) struct RequestPermits {
    requests: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
}

/// The permits of one request, given back when it is dropped.
#[derive(Debug)]
pub(super) struct RequestPermit {
    _request: OwnedSemaphorePermit,
    bytes: OwnedSemaphorePermit,
}

impl Default for RequestPermits {
    fn default() -> Self {
        RequestPermits {
            requests: Arc::new(Semaphore::new(REQUESTS_MAX)),
            bytes: Arc::new(Semaphore::new(BYTES_MAX)),
        }
    }
}

impl RequestPermits {
    /// A permit for a request with a body of at most `bytes`.
    ///
    /// # Errors
    /// 503 when there are too many requests, or they are too large.
    pub(super) fn acquire(&self, bytes: usize) -> Result<RequestPermit, ApiError> {
        let busy = |_| {
            ApiError::busy(
                format!("{REQUESTS_MAX} requests are being answered already; try again later"),
                1,
            )
        };
        let request = Arc::clone(&self.requests)
            .try_acquire_owned()
            .map_err(busy)?;
        Ok(RequestPermit {
            _request: request,
            bytes: acquire_bytes(&self.bytes, bytes)?,
        })
    }
}

impl RequestPermit {
    /// Changes what the request holds to `bytes`.
    ///
    /// # Errors
    /// 503 when other requests hold too much for that.
    pub(super) fn resize(&mut self, bytes: usize) -> Result<(), ApiError> {
        let held = self.bytes.num_permits();
        if bytes > held {
            self.bytes
                .merge(acquire_bytes(self.bytes.semaphore(), bytes - held)?);
        } else {
            // Dropped, and so released.
            let _unused = self.bytes.split(held - bytes);
        }
        Ok(())
    }
}

fn acquire_bytes(left: &Arc<Semaphore>, bytes: usize) -> Result<OwnedSemaphorePermit, ApiError> {
    let full = || {
        ApiError::busy(
            format!(
                "the requests being answered leave too little of {BYTES_MAX} bytes; try again later"
            ),
            1,
        )
    };
    // A semaphore acquires a u32 of permits at most, and BYTES_MAX is below that.
    let permits = u32::try_from(bytes).map_err(|_| full())?;
    Arc::clone(left)
        .try_acquire_many_owned(permits)
        .map_err(|_| full())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn error_of(refused: Result<impl Sized, ApiError>) -> String {
        let error = refused.err().unwrap();
        format!(
            "{} after {:?} s: {}",
            error.status, error.retry_after, error.message
        )
    }

    #[test]
    fn requests_are_limited_in_number_and_bytes() {
        let permits = RequestPermits::default();
        let mut held: Vec<RequestPermit> = (0..REQUESTS_MAX)
            .map(|_| permits.acquire(1 << 20).unwrap())
            .collect();
        insta::assert_snapshot!(error_of(permits.acquire(0)), @"503 after Some(1) s: 32 requests are being answered already; try again later");
        held.truncate(2);
        // One is smaller than announced, the other larger.
        held[0].resize(0).unwrap();
        held[1].resize(BYTES_MAX).unwrap();
        let full = error_of(permits.acquire(1));
        insta::assert_snapshot!(full, @"503 after Some(1) s: the requests being answered leave too little of 536870912 bytes; try again later");
        assert_eq!(error_of(held[0].resize(1)), full);
        assert_eq!(error_of(held[1].resize(usize::MAX)), full);
        held.truncate(1);
        held[0].resize(BYTES_MAX).unwrap();
    }
}
