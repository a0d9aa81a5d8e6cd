//! Where an answer is settled: locally, or by a pool. Pure.
//!
//! ```text
//! kill switch ─▶ pin ─▶ must-escalate ─▶ confidence against threshold ─▶ local or escalate
//!                                       escalate, but an obstacle (link, budget, …) ─▶ local
//! ```

use firmware_config::agent::{KillSwitch, RouteMode};

use crate::reason::Reason;

/// Where an answer is settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The local answer is kept.
    Local,
    /// A pool is asked.
    Escalate,
}

/// A routing decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Where the answer is settled.
    pub target: Target,
    /// The reasons, never empty; the first one decided.
    pub reasons: Vec<Reason>,
}

impl Route {
    /// The same decision, kept local by an obstacle or by a failed pool call.
    pub fn kept_local(mut self, because: Reason) -> Route {
        self.reasons.insert(0, because);
        Route {
            target: Target::Local,
            reasons: self.reasons,
        }
    }

    /// The deciding reason.
    pub fn decided_by(&self) -> Reason {
        // Routes are made below and in `kept_local`, always with a reason.
        self.reasons[0]
    }
}

/// A rule's settings for the router.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RouteSettings {
    /// Where the answer may be settled.
    pub mode: RouteMode,
    /// The local answer is kept at or above this confidence, 0..=1.
    pub threshold: f64,
}

/// Routes a local answer of `confidence` (0..=1), before any obstacle to an escalation is
/// considered.
pub fn route(confidence: f64, settings: RouteSettings, kill_switch: KillSwitch) -> Route {
    let route = by_settings(confidence, settings);
    match kill_switch {
        KillSwitch::Off => route,
        KillSwitch::PoolOnly => Route {
            target: Target::Escalate,
            reasons: vec![Reason::KillSwitch],
        },
        KillSwitch::LocalOnly if route.target == Target::Escalate => {
            route.kept_local(Reason::KillSwitch)
        }
        KillSwitch::LocalOnly => Route {
            target: Target::Local,
            reasons: vec![Reason::KillSwitch],
        },
    }
}

/// The decision without the kill switch.
fn by_settings(confidence: f64, settings: RouteSettings) -> Route {
    let (target, reason) = match settings.mode {
        RouteMode::Local => (Target::Local, Reason::Pin),
        RouteMode::Pool => (Target::Escalate, Reason::Pin),
        RouteMode::MustEscalate => (Target::Escalate, Reason::MustEscalate),
        // NaN compares as below the threshold.
        RouteMode::Auto if confidence >= settings.threshold => (Target::Local, Reason::Confident),
        RouteMode::Auto => (Target::Escalate, Reason::LowConfidence),
    };
    Route {
        target,
        reasons: vec![reason],
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn kill_switch_comes_before_mode_and_mode_before_confidence() {
        use KillSwitch::{LocalOnly, Off, PoolOnly};
        use RouteMode::{Auto, MustEscalate, Pool};
        use Target::{Escalate, Local};
        for (kill_switch, mode, confidence, target, reasons) in [
            (Off, Auto, 0.9, Local, "CONFIDENT"),
            (Off, Auto, 0.89, Escalate, "LOW_CONFIDENCE"),
            (Off, Auto, f64::NAN, Escalate, "LOW_CONFIDENCE"),
            (Off, RouteMode::Local, 0.1, Local, "PIN"),
            (Off, Pool, 1.0, Escalate, "PIN"),
            (Off, MustEscalate, 1.0, Escalate, "MUST_ESCALATE"),
            (LocalOnly, Auto, 0.95, Local, "KILL_SWITCH"),
            (LocalOnly, Auto, 0.1, Local, "KILL_SWITCH LOW_CONFIDENCE"),
            (LocalOnly, Pool, 0.1, Local, "KILL_SWITCH PIN"),
            (
                LocalOnly,
                MustEscalate,
                0.1,
                Local,
                "KILL_SWITCH MUST_ESCALATE",
            ),
            (PoolOnly, Auto, 0.95, Escalate, "KILL_SWITCH"),
            (PoolOnly, RouteMode::Local, 0.95, Escalate, "KILL_SWITCH"),
        ] {
            let threshold = 0.9;
            let route = route(confidence, RouteSettings { mode, threshold }, kill_switch);
            assert_eq!(
                (route.target, codes(&route).join(" ").as_str()),
                (target, reasons),
                "{kill_switch:?} {mode:?} {confidence}"
            );
        }
    }

    #[test]
    fn an_obstacle_is_the_first_reason() {
        let route = route(
            0.2,
            RouteSettings {
                mode: RouteMode::Auto,
                threshold: 0.9,
            },
            KillSwitch::Off,
        )
        .kept_local(Reason::LinkDown);
        assert_eq!(
            (route.target, codes(&route)),
            (Target::Local, vec!["LINK_DOWN", "LOW_CONFIDENCE"])
        );
    }

    fn codes(route: &Route) -> Vec<&'static str> {
        route.reasons.iter().map(|reason| reason.as_str()).collect()
    }

    proptest! {
        #[test]
        fn higher_confidence_never_escalates(low in 0.0_f64..=1.0, more in 0.0_f64..=1.0, threshold in 0.0_f64..=1.0, mode in 0..4, switch in 0..3) {
            let mode = [RouteMode::Auto, RouteMode::Local, RouteMode::Pool, RouteMode::MustEscalate][mode as usize];
            let switch = [KillSwitch::Off, KillSwitch::LocalOnly, KillSwitch::PoolOnly][switch as usize];
            let settings = RouteSettings { mode, threshold };
            let before = route(low, settings, switch);
            let after = route((low + more).min(1.0), settings, switch);
            prop_assert!(!(before.target == Target::Local && after.target == Target::Escalate));
        }

        #[test]
        fn local_only_never_escalates(confidence in any::<f64>(), mode in 0..4) {
            let mode = [RouteMode::Auto, RouteMode::Local, RouteMode::Pool, RouteMode::MustEscalate][mode as usize];
            let route = route(confidence, RouteSettings { mode, threshold: 0.9 }, KillSwitch::LocalOnly);
            prop_assert_eq!((route.target, route.decided_by()), (Target::Local, Reason::KillSwitch));
        }
    }
}
