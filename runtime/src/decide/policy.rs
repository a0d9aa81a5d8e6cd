//! The policy in force: what every escalation passes, whether a camera or a client of the gateway
//! wants it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use firmware_config::agent::{KillSwitch, Policy};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::decide::budget::{Cost, Ledger, Reservation};
use crate::decide::router::Reason;

/// The kill switch, the in-flight limit and the budgets of one box; cheap to clone.
#[derive(Debug, Clone)]
pub struct InForce {
    kill_switch: watch::Sender<KillSwitch>,
    in_flight: Arc<Semaphore>,
    ledger: Arc<Mutex<Ledger>>,
    started: Instant,
}

impl InForce {
    /// The configured policy, with unspent budgets.
    pub fn new(policy: &Policy) -> Self {
        InForce {
            kill_switch: watch::Sender::new(policy.kill_switch),
            in_flight: Arc::new(Semaphore::new(policy.in_flight_max)),
            ledger: Arc::new(Mutex::new(Ledger::new(policy))),
            started: Instant::now(),
        }
    }

    /// The kill switch, as it is now.
    pub fn kill_switch(&self) -> KillSwitch {
        *self.kill_switch.borrow()
    }

    /// Resolves when the kill switch is on `local-only`.
    pub async fn forbidden(&self) {
        // Its sender is `self`, which is there.
        let _ = self
            .kill_switch
            .subscribe()
            .wait_for(|switch| *switch == KillSwitch::LocalOnly)
            .await;
    }

    /// Sets the kill switch, from the next decision on; `local-only` also ends the calls under way.
    pub fn set_kill_switch(&self, to: KillSwitch) {
        self.kill_switch.send_replace(to);
    }

    /// Takes an in-flight place, before anything is prepared for it.
    ///
    /// # Errors
    /// When all are taken.
    pub fn place(&self) -> Result<Place, Reason> {
        let place = Arc::clone(&self.in_flight)
            .try_acquire_owned()
            .map_err(|_| Reason::Busy)?;
        Ok(Place {
            in_force: self.clone(),
            place,
        })
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn ledger(&self) -> std::sync::MutexGuard<'_, Ledger> {
        // The ledger's arithmetic does not panic half-way, so a poisoned lock still holds a whole
        // one.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An in-flight place, given back when dropped.
#[derive(Debug)]
pub struct Place {
    in_force: InForce,
    place: OwnedSemaphorePermit,
}

impl Place {
    /// Takes one call of at most `cost` from the budgets.
    ///
    /// # Errors
    /// What is used up.
    pub fn permit(self, cost: Cost) -> Result<Permit, Reason> {
        let Place { in_force, place } = self;
        let reservation = in_force.ledger().reserve(in_force.now(), cost)?;
        Ok(Permit {
            in_force,
            reservation,
            _place: place,
        })
    }
}

/// Leave to ask a pool once. Dropped unsettled (the caller gave up), the call counts with its worst
/// case.
#[derive(Debug)]
pub struct Permit {
    in_force: InForce,
    reservation: Reservation,
    _place: OwnedSemaphorePermit,
}

impl Permit {
    /// Gives back what the call did not use, and its in-flight place.
    pub fn settle(self, used: Cost) {
        self.in_force.ledger().settle(self.reservation, used);
    }

    /// Gives back everything: nothing was sent.
    pub fn cancel(self) {
        self.in_force.ledger().cancel(self.reservation);
    }
}

/// Reads a kill switch as it is written in the configuration and over MQTT.
pub fn parse_kill_switch(text: &str) -> Option<KillSwitch> {
    [KillSwitch::Off, KillSwitch::LocalOnly, KillSwitch::PoolOnly]
        .into_iter()
        .find(|switch| kill_switch_name(*switch) == text)
}

/// `off`, `local-only` or `pool-only`.
pub fn kill_switch_name(switch: KillSwitch) -> &'static str {
    match switch {
        KillSwitch::Off => "off",
        KillSwitch::LocalOnly => "local-only",
        KillSwitch::PoolOnly => "pool-only",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_come_back_and_calls_do_not() {
        let policy = Policy {
            kill_switch: KillSwitch::Off,
            calls_per_minute: Some(2),
            in_flight_max: 1,
            bytes_per_minute: None,
            usd_per_day: None,
        };
        let in_force = InForce::new(&policy);
        let cost = Cost {
            bytes: 1,
            micro_usd: 0,
        };
        let permit = || in_force.place()?.permit(cost);
        let first = permit().expect("free");
        assert_eq!(permit().expect_err("one place"), Reason::Busy);
        first.settle(cost);
        permit().expect("the place is back").cancel();
        drop(permit().expect("what was cancelled does not count"));
        assert_eq!(permit().expect_err("two calls"), Reason::BudgetCalls);
    }

    #[test]
    fn kill_switch_names() {
        for name in ["off", "local-only", "pool-only"] {
            assert_eq!(parse_kill_switch(name).map(kill_switch_name), Some(name));
        }
        assert_eq!(parse_kill_switch("OFF"), None);
    }
}
