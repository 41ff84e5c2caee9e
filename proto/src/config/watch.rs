//! What a person sees of a run, and what it leaves for other programs. No result depends on it.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::{
    ConfigError,
    raw::{choice, value_error},
};

/// The `[watch]` section.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs, reason = "see RawConfig")]
pub struct RawWatch {
    pub view: Option<String>,
    pub log_format: Option<String>,
    pub dashboard: Option<String>,
    pub dashboard_token: Option<String>,
    pub tensorboard: Option<bool>,
    pub dvc: Option<bool>,
    pub trace: Option<String>,
    pub otlp: Option<String>,
}

/// What a terminal shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// A live view on a terminal, lines elsewhere.
    Auto,
    /// Lines.
    Lines,
}

/// What lines look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// An object a line.
    Json,
}

/// Whether there is a page, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dashboard {
    /// There is none.
    Off,
    /// On loopback, wherever there is room.
    Loopback,
    /// There.
    At(SocketAddr),
}

/// What there is to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    /// What a terminal shows.
    pub view: View,
    /// What lines look like.
    pub log_format: LogFormat,
    /// Whether there is a page.
    pub dashboard: Dashboard,
    /// A file with the token that lets somebody act there.
    pub dashboard_token: Option<String>,
    /// Whether TensorBoard's event files are written.
    pub tensorboard: bool,
    /// Whether what DVC reads is written.
    pub dvc: bool,
    /// Where a trace of all processes is written.
    pub trace: Option<String>,
    /// The collector that it is sent to.
    pub otlp: Option<String>,
}

impl Watch {
    /// Whether processes note where they spend their time.
    pub fn is_traced(&self) -> bool {
        self.trace.is_some() || self.otlp.is_some()
    }
}

impl RawWatch {
    pub(super) fn resolve(self) -> Result<Watch, ConfigError> {
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        let view = match choice("watch.view", self.view.as_deref().unwrap_or("auto"), &["auto", "lines"])? {
            "lines" => View::Lines,
            _ => View::Auto,
        };
        let log_format = self.log_format.unwrap_or_else(|| "text".into());
        let log_format = match choice("watch.log_format", &log_format, &["text", "json"])? {
            "json" => LogFormat::Json,
            _ => LogFormat::Text,
        };
        let dashboard = self.dashboard.as_deref().unwrap_or("off").parse()?;
        let dashboard_token = given(self.dashboard_token);
        if dashboard_token.is_some() && dashboard == Dashboard::Off {
            let problem = "is of no use without a dashboard; say --dashboard, too";
            return Err(value_error("watch.dashboard_token", dashboard_token.unwrap_or_default(), problem));
        }
        Ok(Watch {
            view,
            log_format,
            dashboard,
            dashboard_token,
            tensorboard: self.tensorboard.unwrap_or(true),
            dvc: self.dvc.unwrap_or(true),
            trace: given(self.trace),
            otlp: given(self.otlp),
        })
    }
}

impl From<&Watch> for RawWatch {
    fn from(watch: &Watch) -> Self {
        let word = |is: bool, yes: &str, no: &str| Some(if is { yes } else { no }.to_string());
        RawWatch {
            view: word(watch.view == View::Auto, "auto", "lines"),
            log_format: word(watch.log_format == LogFormat::Json, "json", "text"),
            dashboard: Some(watch.dashboard.to_string()),
            dashboard_token: watch.dashboard_token.clone(),
            tensorboard: Some(watch.tensorboard),
            dvc: Some(watch.dvc),
            trace: watch.trace.clone(),
            otlp: watch.otlp.clone(),
        }
    }
}

impl std::fmt::Display for Dashboard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Dashboard::Off => f.write_str("off"),
            Dashboard::Loopback => f.write_str("on"),
            Dashboard::At(address) => address.fmt(f),
        }
    }
}

impl std::str::FromStr for Dashboard {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Dashboard, ConfigError> {
        match text {
            "off" => Ok(Dashboard::Off),
            "on" => Ok(Dashboard::Loopback),
            // As people say a port of their own machine.
            text => match text.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}")) {
                Some(address) => address.parse(),
                None => text.parse(),
            }
            .map(Dashboard::At)
            .map_err(|_| {
                let problem = "must be off, on, or an address and a port such as 127.0.0.1:8600 or 0.0.0.0:8600";
                value_error("watch.dashboard", format!("\"{text}\""), problem)
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dashboard_is_somewhere_or_nowhere() {
        for (text, printed) in [
            ("off", "off"),
            ("on", "on"),
            ("127.0.0.1:8600", "127.0.0.1:8600"),
            ("localhost:0", "127.0.0.1:0"),
            ("[::1]:80", "[::1]:80"),
        ] {
            assert_eq!(text.parse::<Dashboard>().map(|there| there.to_string()), Ok(printed.into()));
        }
        for wrong in ["", "yes", "8600", "latest", "host:80"] {
            let problem = wrong.parse::<Dashboard>().unwrap_err().to_string();
            assert!(problem.contains("such as 127.0.0.1:8600"), "{problem}");
        }
        let token = RawWatch { dashboard_token: Some("t".into()), ..RawWatch::default() };
        assert!(token.resolve().unwrap_err().to_string().contains("say --dashboard"));
    }
}
