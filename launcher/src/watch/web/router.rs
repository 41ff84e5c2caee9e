//! What is asked of the dashboard, and what it answers.

use std::{convert::Infallible, net::IpAddr, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{Path, Request, State},
    http::{
        HeaderMap, StatusCode,
        header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HOST},
    },
    middleware::{self, Next},
    response::{IntoResponse, Response, Sse, sse},
    routing::{get, post},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;

use super::{
    actions::{self, Actions},
    shelf::Shelf,
};
use crate::watch::{exposition, follow::Seen};

/// How often a stream looks whether there is something new.
const EVERY: Duration = Duration::from_millis(1_000);

/// Runs that are looked on at once.
pub const STREAMS: usize = 64;

/// Files of the page: name, type, contents.
const ASSETS: [(&str, &str, &str); 5] = [
    ("app.js", "text/javascript", include_str!("assets/app.js")),
    ("charts.js", "text/javascript", include_str!("assets/charts.js")),
    ("tables.js", "text/javascript", include_str!("assets/tables.js")),
    ("style.css", "text/css", include_str!("assets/style.css")),
    ("icon.svg", "image/svg+xml", include_str!("assets/icon.svg")),
];

/// Nothing from elsewhere is loaded, run or framed.
const POLICY: &str = "default-src 'self'; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'";

/// What a dashboard is made of.
#[derive(Clone, Debug)]
pub struct Site {
    /// The runs.
    pub shelf: Shelf,
    /// Who may act, if anybody.
    pub actions: Option<Actions>,
    /// Whether it listens on loopback.
    pub is_local: bool,
    /// Places for those who look on.
    pub streams: Arc<Semaphore>,
    /// Cancelled when it is to end.
    pub stop: CancellationToken,
}

type Denied = (StatusCode, Json<Value>);

fn denied(code: StatusCode, problem: impl Into<String>) -> Denied {
    (code, Json(json!({ "error": problem.into() })))
}

/// All that can be asked.
pub fn router(site: Site) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/assets/{file}", get(asset))
        .route("/metrics", get(metrics))
        .route("/api/runs", get(runs))
        .route("/api/runs/{name}", get(run))
        .route("/api/runs/{name}/events", get(events))
        .route("/api/runs/{name}/stop", post(stop))
        .route("/api/runs/{name}/scale", post(scale))
        .layer(middleware::from_fn_with_state(site.clone(), guarded))
        .with_state(site)
}

/// Refuses requests that a page from elsewhere made a browser send, and says what pages may do.
async fn guarded(State(site): State<Site>, request: Request, next: Next) -> Response {
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let mut response = match site.is_local && !is_loopback(host) {
        true => denied(StatusCode::FORBIDDEN, format!("{host} is no name of loopback")).into_response(),
        false => next.run(request).await,
    };
    let headers = response.headers_mut();
    for (name, value) in
        [("content-security-policy", POLICY), ("x-content-type-options", "nosniff"), ("referrer-policy", "no-referrer")]
    {
        headers.insert(name, axum::http::HeaderValue::from_static(value));
    }
    headers.entry(CACHE_CONTROL).or_insert(axum::http::HeaderValue::from_static("no-store"));
    response
}

/// Whether a browser that asks for `host` asks this machine, whatever the name service says.
fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

async fn index() -> Response {
    ([(CONTENT_TYPE, "text/html; charset=utf-8")], include_str!("assets/index.html")).into_response()
}

async fn asset(Path(file): Path<String>) -> Result<Response, Denied> {
    let found = ASSETS.iter().find(|(name, ..)| *name == file);
    let (_, kind, text) = found.ok_or_else(|| denied(StatusCode::NOT_FOUND, format!("there is no {file}")))?;
    Ok(([(CONTENT_TYPE, format!("{kind}; charset=utf-8"))], *text).into_response())
}

/// Reads files beside the runtime, so that a large one holds up nobody else.
async fn read<T: Send + 'static>(read: impl FnOnce() -> T + Send + 'static) -> Result<T, Denied> {
    let problem = |_| denied(StatusCode::INTERNAL_SERVER_ERROR, "the run's files cannot be read");
    tokio::task::spawn_blocking(read).await.map_err(problem)
}

async fn look(site: &Site, name: &str, is_urgent: bool) -> Result<(Arc<Seen>, Arc<str>), Denied> {
    let (shelf, wanted) = (site.shelf.clone(), name.to_string());
    let seen = read(move || shelf.look(&wanted, is_urgent)).await?;
    seen.ok_or_else(|| denied(StatusCode::NOT_FOUND, format!("there is no run {name}")))
}

async fn runs(State(site): State<Site>) -> Result<Json<Value>, Denied> {
    read(move || Json(site.shelf.list(site.actions.is_some()))).await
}

async fn run(State(site): State<Site>, Path(name): Path<String>) -> Result<Response, Denied> {
    let (_, document) = look(&site, &name, false).await?;
    Ok(([(CONTENT_TYPE, "application/json")], document.to_string()).into_response())
}

async fn metrics(State(site): State<Site>) -> Result<Response, Denied> {
    let text = read(move || exposition::text(&site.shelf.live())).await?;
    Ok(([(CONTENT_TYPE, exposition::TYPE)], text).into_response())
}

/// A run, now and whenever there is something new, until it is over.
async fn events(
    State(site): State<Site>,
    Path(name): Path<String>,
) -> Result<Sse<impl Stream<Item = Result<sse::Event, Infallible>>>, Denied> {
    look(&site, &name, false).await?;
    let busy = || denied(StatusCode::SERVICE_UNAVAILABLE, format!("{STREAMS} look already"));
    let place = site.streams.clone().try_acquire_owned().map_err(|_| busy())?;
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        let _place = place;
        let mut told: Option<Arc<str>> = None;
        loop {
            let is_last = site.stop.is_cancelled();
            let Ok((seen, document)) = look(&site, &name, is_last).await else { return };
            let event = (told.as_ref() != Some(&document)).then(|| sse::Event::default().event("run").data(&*document));
            let is_over = !seen.is_live;
            told = Some(document);
            let end = is_over.then(|| sse::Event::default().event("end").data(""));
            for event in event.into_iter().chain(end) {
                if sender.send(event).await.is_err() {
                    return;
                }
            }
            if is_last || is_over {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                // What was written at the end is told, too.
                () = site.stop.cancelled() => {}
                () = sender.closed() => return,
            }
        }
    });
    let stream = tokio_stream::StreamExt::map(tokio_stream::wrappers::ReceiverStream::new(receiver), Ok);
    Ok(Sse::new(stream).keep_alive(sse::KeepAlive::default()))
}

/// The run that somebody may act on.
fn allowed(site: &Site, name: &str, headers: &HeaderMap) -> Result<std::path::PathBuf, Denied> {
    let read_only = || denied(StatusCode::FORBIDDEN, "this dashboard only shows; --dashboard-token lets it act");
    let actions = site.actions.as_ref().ok_or_else(read_only)?;
    if !actions.is_shown(headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok())) {
        return Err(denied(StatusCode::UNAUTHORIZED, "the token is missing or wrong"));
    }
    site.shelf.path(name).ok_or_else(|| denied(StatusCode::NOT_FOUND, format!("there is no run {name}")))
}

fn answer(done: Result<String, crate::outcome::Failure>) -> Result<Json<Value>, Denied> {
    done.map(|done| Json(json!({ "done": done }))).map_err(|failure| denied(StatusCode::CONFLICT, failure.to_string()))
}

async fn stop(State(site): State<Site>, Path(name): Path<String>, headers: HeaderMap) -> Result<Json<Value>, Denied> {
    answer(actions::stop(&allowed(&site, &name, &headers)?))
}

/// How many workers there are to be.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    workers: u32,
}

async fn scale(
    State(site): State<Site>,
    Path(name): Path<String>,
    headers: HeaderMap,
    wanted: Result<Json<Wanted>, axum::extract::rejection::JsonRejection>,
) -> Result<Json<Value>, Denied> {
    let run = allowed(&site, &name, &headers)?;
    let Json(Wanted { workers }) = wanted.map_err(|problem| denied(StatusCode::BAD_REQUEST, problem.body_text()))?;
    answer(actions::scale(&run, workers).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_loopback_are_known_by_sight() {
        for host in ["localhost", "LocalHost:80", "127.0.0.1:8600", "127.9.9.9", "[::1]:8600", "[::1]"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["", "example.org", "localhost.example.org:80", "10.0.0.1:8600", "127.0.0.1.example.org", "[::2]:1"]
        {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn pages_name_only_what_there_is() {
        let page = include_str!("assets/index.html");
        for part in page.split("assets/").skip(1) {
            let file = part.split('"').next().unwrap();
            assert!(ASSETS.iter().any(|(name, ..)| *name == file), "{file}");
        }
        let all: Vec<_> = ASSETS.iter().map(|(_, _, text)| *text).chain([page]).collect();
        assert!(all.iter().all(|text| !text.contains("https://") && !text.contains("//cdn")), "nothing from elsewhere");
    }
}
