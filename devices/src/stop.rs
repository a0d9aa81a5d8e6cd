//! A switch that ends every wait of the cameras that share it.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// A switch that goes from running to stopped, once. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<(Mutex<bool>, Condvar)>);

impl Stop {
    /// A switch that is not yet set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets it: a blocked [`Camera::next_frame`](crate::Camera::next_frame) returns within 100
    /// ms.
    pub fn stop(&self) {
        let (stopped, set) = &*self.0;
        *stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        set.notify_all();
    }

    /// Whether it was set.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps for `timeout`, or until it is set; true when it was.
    #[must_use]
    pub fn wait(&self, timeout: Duration) -> bool {
        let (stopped, set) = &*self.0;
        let guard = stopped.lock().unwrap_or_else(PoisonError::into_inner);
        let (guard, _) = set
            .wait_timeout_while(guard, timeout, |stopped| !*stopped)
            .unwrap_or_else(PoisonError::into_inner);
        *guard
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thrown_switch_ends_a_wait() {
        let stop = Stop::new();
        assert!(!stop.wait(Duration::ZERO));
        let waiting = std::thread::spawn({
            let stop = stop.clone();
            move || stop.wait(Duration::from_secs(3600))
        });
        stop.stop();
        assert!(waiting.join().expect("it does not panic"));
        assert!(stop.is_stopped() && stop.wait(Duration::from_secs(3600)));
    }
}
