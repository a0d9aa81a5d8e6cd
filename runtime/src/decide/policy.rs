//! The policy in force: what every escalation passes, whether it is for a camera or for a client of
//! the gateway.

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use firmware_config::agent::{KillSwitch, Policy};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::clock::Clock;
use crate::decide::budget::{Cost, Ledger, Reservation};
use crate::reason::Reason;

/// The kill switch, the in-flight limit and the budgets of one box; cheap to clone.
#[derive(Debug, Clone)]
pub struct PolicyState {
    kill_switch: Arc<Switch>,
    in_flight: Arc<Semaphore>,
    ledger: Arc<Mutex<Ledger>>,
    clock: Clock,
}

impl PolicyState {
    /// The configured policy, with unspent budgets.
    pub fn new(policy: &Policy, clock: Clock) -> Self {
        PolicyState {
            kill_switch: Arc::new(Switch {
                position: Mutex::new(policy.kill_switch),
                changed: Notify::new(),
            }),
            in_flight: Arc::new(Semaphore::new(policy.in_flight_max)),
            ledger: Arc::new(Mutex::new(Ledger::new(policy))),
            clock,
        }
    }

    /// The kill switch, as it is now.
    pub fn kill_switch(&self) -> KillSwitch {
        *self.kill_switch.position()
    }

    /// Resolves when the kill switch is on `local-only`.
    pub async fn forbidden(&self) {
        let changed = self.kill_switch.changed.notified();
        let mut changed = pin!(changed);
        loop {
            // Registered before the look, so that no change in between is missed.
            changed.as_mut().enable();
            if self.kill_switch() == KillSwitch::LocalOnly {
                return;
            }
            changed.as_mut().await;
            changed.set(self.kill_switch.changed.notified());
        }
    }

    /// Sets the kill switch, from the next decision on; `local-only` also ends the calls under way.
    pub fn set_kill_switch(&self, to: KillSwitch) {
        *self.kill_switch.position() = to;
        self.kill_switch.changed.notify_waiters();
    }

    /// Takes an in-flight slot, before anything is prepared for the call.
    ///
    /// # Errors
    /// When all are taken.
    pub fn slot(&self) -> Result<InFlightSlot, Reason> {
        let slot = Arc::clone(&self.in_flight)
            .try_acquire_owned()
            .map_err(|_| Reason::Busy)?;
        Ok(InFlightSlot {
            policy: self.clone(),
            slot,
        })
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // The ledger's arithmetic does not panic half-way, so a poisoned lock still holds a whole
        // one.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The kill switch. Those who wait for a change are woken in the order in which they came.
#[derive(Debug)]
struct Switch {
    position: Mutex<KillSwitch>,
    changed: Notify,
}

impl Switch {
    fn position(&self) -> MutexGuard<'_, KillSwitch> {
        // A position is set whole or not at all.
        self.position.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An in-flight slot, given back when dropped.
#[derive(Debug)]
pub struct InFlightSlot {
    policy: PolicyState,
    slot: OwnedSemaphorePermit,
}

impl InFlightSlot {
    /// Takes one call of at most `cost` from the budgets.
    ///
    /// # Errors
    /// The budget that is used up.
    pub fn permit(self, cost: Cost) -> Result<Permit, Reason> {
        let InFlightSlot { policy, slot } = self;
        let reservation = policy.ledger().reserve(policy.clock.now(), cost)?;
        Ok(Permit {
            policy,
            reservation,
            _slot: slot,
        })
    }
}

/// Permission for one call. Dropped unsettled (the caller gave up), the call counts with its worst
/// case.
#[derive(Debug)]
pub struct Permit {
    policy: PolicyState,
    reservation: Reservation,
    _slot: OwnedSemaphorePermit,
}

impl Permit {
    /// Gives back what the call did not use, and its in-flight slot.
    pub fn settle(self, used: Cost) {
        self.policy.ledger().settle(self.reservation, used);
    }

    /// Gives back everything: nothing was sent.
    pub fn cancel(self) {
        self.policy.ledger().cancel(self.reservation);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_come_back_and_calls_do_not() {
        let policy = Policy {
            kill_switch: KillSwitch::Off,
            calls_per_minute: Some(2),
            in_flight_max: 1,
            bytes_per_minute: None,
            usd_per_day: None,
        };
        let policy = PolicyState::new(&policy, Clock::system());
        let cost = Cost {
            bytes: 1,
            micro_usd: 0,
        };
        let permit = || policy.slot()?.permit(cost);
        let first = permit().expect("free");
        assert_eq!(permit().expect_err("one slot"), Reason::Busy);
        first.settle(cost);
        permit().expect("the slot is back").cancel();
        drop(permit().expect("what was cancelled does not count"));
        assert_eq!(permit().expect_err("two calls"), Reason::BudgetCalls);
    }
}
