//! Where everything is published, and where commands come in: the topic tree of one box. Pure.

/// The topic tree of one box.
#[derive(Debug, Clone)]
pub struct Topics {
    root: String,
}

impl Topics {
    /// `egret/<node>/…`
    pub fn new(node: &str) -> Self {
        Topics {
            root: format!("egret/{node}"),
        }
    }

    /// Whether the box is there.
    pub fn status(&self) -> String {
        format!("{}/status", self.root)
    }

    /// What the box is.
    pub fn info(&self) -> String {
        format!("{}/info", self.root)
    }

    /// How the box is.
    pub fn health(&self) -> String {
        format!("{}/health", self.root)
    }

    /// Events that will never come.
    pub fn gap(&self) -> String {
        format!("{}/gap", self.root)
    }

    /// Sets the kill switch.
    pub fn kill_switch_set(&self) -> String {
        format!("{}/kill-switch/set", self.root)
    }

    /// The kill switch in force.
    pub fn kill_switch_state(&self) -> String {
        format!("{}/kill-switch/state", self.root)
    }

    /// Whether a camera delivers.
    pub fn camera_status(&self, cam: &str) -> String {
        format!("{}/cam/{cam}/status", self.root)
    }

    /// A camera's events.
    pub fn event(&self, cam: &str) -> String {
        format!("{}/cam/{cam}/event", self.root)
    }

    /// A camera's last picture with an event.
    pub fn snapshot(&self, cam: &str) -> String {
        format!("{}/cam/{cam}/snapshot", self.root)
    }

    /// A rule's short state.
    pub fn rule_state(&self, cam: &str, rule: &str) -> String {
        format!("{}/cam/{cam}/rule/{rule}/state", self.root)
    }

    /// A rule's answer in full.
    pub fn rule_attributes(&self, cam: &str, rule: &str) -> String {
        format!("{}/cam/{cam}/rule/{rule}/attributes", self.root)
    }
}
