//! Room for requests: how many there are at one time, and how many bytes they hold together.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::serve::openai::ApiError;

/// Requests that are read or answered at one time.
const REQUESTS_MAX: usize = 32;
/// Bytes of bodies and decoded pictures that all requests hold at one time: two of the largest, or
/// many of the usual ones.
const BYTES_MAX: usize = 512 << 20;

/// What is left of it.
#[derive(Debug)]
pub(super) struct Room {
    requests: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
}

/// A request's place, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    _request: OwnedSemaphorePermit,
    bytes: OwnedSemaphorePermit,
}

impl Default for Room {
    fn default() -> Self {
        Room {
            requests: Arc::new(Semaphore::new(REQUESTS_MAX)),
            bytes: Arc::new(Semaphore::new(BYTES_MAX)),
        }
    }
}

impl Room {
    /// A place for a request whose body is told to have `bytes`.
    ///
    /// # Errors
    /// 503 when there are too many, or they are too large.
    pub(super) fn enter(&self, bytes: usize) -> Result<Place, ApiError> {
        let busy = |_| {
            ApiError::busy(
                format!("{REQUESTS_MAX} requests are being answered already; try again later"),
                1,
            )
        };
        let request = Arc::clone(&self.requests)
            .try_acquire_owned()
            .map_err(busy)?;
        Ok(Place {
            _request: request,
            bytes: take(&self.bytes, bytes)?,
        })
    }
}

impl Place {
    /// The request holds `bytes` now.
    ///
    /// # Errors
    /// 503 when that is more than there is room for.
    pub(super) fn hold(&mut self, bytes: usize) -> Result<(), ApiError> {
        let held = self.bytes.num_permits();
        if bytes > held {
            self.bytes
                .merge(take(self.bytes.semaphore(), bytes - held)?);
        } else {
            // Dropped, and so given back.
            let _unused = self.bytes.split(held - bytes);
        }
        Ok(())
    }
}

fn take(left: &Arc<Semaphore>, bytes: usize) -> Result<OwnedSemaphorePermit, ApiError> {
    let full = || {
        ApiError::busy(
            format!(
                "the requests being answered hold {BYTES_MAX} bytes already, or nearly; try again later"
            ),
            1,
        )
    };
    // More than a permit counts is more than there ever is.
    let permits = u32::try_from(bytes).map_err(|_| full())?;
    Arc::clone(left)
        .try_acquire_many_owned(permits)
        .map_err(|_| full())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn told(refused: Result<impl Sized, ApiError>) -> String {
        let error = refused.err().unwrap();
        format!(
            "{} after {:?} s: {}",
            error.status, error.retry_after, error.message
        )
    }

    #[test]
    fn requests_are_counted_and_weighed() {
        let room = Room::default();
        let mut places: Vec<Place> = (0..REQUESTS_MAX)
            .map(|_| room.enter(1 << 20).unwrap())
            .collect();
        insta::assert_snapshot!(told(room.enter(0)), @"503 after Some(1) s: 32 requests are being answered already; try again later");
        places.truncate(2);
        // One is smaller than it was told to be, the other turns out larger.
        places[0].hold(0).unwrap();
        places[1].hold(BYTES_MAX).unwrap();
        let full = told(room.enter(1));
        insta::assert_snapshot!(full, @"503 after Some(1) s: the requests being answered hold 536870912 bytes already, or nearly; try again later");
        assert_eq!(told(places[0].hold(1)), full);
        assert_eq!(told(places[1].hold(usize::MAX)), full);
        places.truncate(1);
        places[0].hold(BYTES_MAX).unwrap();
    }
}
