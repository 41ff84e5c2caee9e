//! `--otlp URL`: the spans of a run for an OpenTelemetry collector, each process a resource of its own.

use std::{collections::BTreeMap, io, time::Duration};

use convoy_proto::{ids::Role, trace};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTraceServiceRequest, trace_service_client::TraceServiceClient},
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span, span::SpanKind},
};
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};

use super::trace::{Source, Takes, Told};
use crate::outcome::Failure;

/// How long the collector may take for some spans.
const PATIENCE: Duration = Duration::from_secs(5);
/// Spans that are sent at once, and that are kept at most while the collector is away.
const AT_ONCE: usize = 4_096;
const KEPT: usize = 65_536;

/// A way to a collector.
pub struct Collector {
    runtime: Runtime,
    client: TraceServiceClient<Channel>,
    trace_id: Vec<u8>,
    run: String,
    waiting: Vec<(Source, trace::Span)>,
    /// Whether the last time failed: that is said once.
    is_away: bool,
}

impl Collector {
    /// To a collector, for a run.
    ///
    /// # Errors
    /// That is no address, or there is no runtime.
    pub fn open(url: &str, run: &str) -> Result<Collector, Failure> {
        let wrong = |problem: String| Failure::Usage(format!("--otlp {url}: {problem}; such as http://127.0.0.1:4317"));
        let endpoint = Endpoint::from_shared(url.to_string()).map_err(|problem| wrong(problem.to_string()))?;
        if endpoint.uri().scheme_str() != Some("http") || endpoint.uri().host().is_none() {
            return Err(wrong("must be an http:// address".into()));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime =
            runtime.map_err(|problem| Failure::Environment(format!("cannot start the runtime: {problem}")))?;
        let channel = runtime.block_on(async { endpoint.timeout(PATIENCE).connect_timeout(PATIENCE).connect_lazy() });
        Ok(Collector {
            runtime,
            client: TraceServiceClient::new(channel),
            trace_id: trace::trace_id(run).to_vec(),
            run: run.into(),
            waiting: Vec::new(),
            is_away: false,
        })
    }

    fn request(&self, spans: &[(Source, trace::Span)]) -> ExportTraceServiceRequest {
        let mut by_source: BTreeMap<String, (&Source, Vec<Span>)> = BTreeMap::new();
        for (source, span) in spans {
            let key = format!("{}-{}-{}-{}", source.role, source.rank, source.pid, source.host);
            by_source.entry(key).or_insert((source, Vec::new())).1.push(self.span(source, span));
        }
        let resource_spans =
            by_source.into_values().map(|(source, spans)| self.resource_spans(source, spans)).collect();
        ExportTraceServiceRequest { resource_spans }
    }

    fn resource_spans(&self, source: &Source, spans: Vec<Span>) -> ResourceSpans {
        let attributes = vec![
            text("service.namespace", "convoy"),
            text("service.name", &format!("convoy-{}", source.role)),
            text("service.instance.id", &format!("{}-{}", source.role, source.rank)),
            text("service.version", env!("CARGO_PKG_VERSION")),
            text("host.name", &source.host),
            number("process.pid", u64::from(source.pid)),
            text("convoy.run", &self.run),
        ];
        let scope = InstrumentationScope { name: "convoy".into(), ..InstrumentationScope::default() };
        ResourceSpans {
            resource: Some(Resource { attributes, ..Resource::default() }),
            scope_spans: vec![ScopeSpans { scope: Some(scope), spans, schema_url: String::new() }],
            schema_url: String::new(),
        }
    }

    fn span(&self, source: &Source, span: &trace::Span) -> Span {
        let kind = match (source.role, span.name.as_str()) {
            (Role::Worker, "exchange") => SpanKind::Client,
            (Role::Server, "push-pull") => SpanKind::Server,
            _ => SpanKind::Internal,
        };
        Span {
            trace_id: self.trace_id.clone(),
            span_id: span.id.0.to_be_bytes().to_vec(),
            parent_span_id: span.parent.map(|parent| parent.0.to_be_bytes().to_vec()).unwrap_or_default(),
            name: span.name.clone(),
            kind: kind.into(),
            start_time_unix_nano: span.start_us.saturating_mul(1_000),
            end_time_unix_nano: span.start_us.saturating_add(span.duration_us).saturating_mul(1_000),
            attributes: vec![number("convoy.step", span.step)],
            ..Span::default()
        }
    }
}

fn text(key: &str, value: &str) -> KeyValue {
    KeyValue { key: key.into(), value: Some(AnyValue { value: Some(Value::StringValue(value.into())) }) }
}

fn number(key: &str, value: u64) -> KeyValue {
    let value = Value::IntValue(i64::try_from(value).unwrap_or(i64::MAX));
    KeyValue { key: key.into(), value: Some(AnyValue { value: Some(value) }) }
}

impl Takes for Collector {
    fn begin(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn add(&mut self, Told { source, spans, .. }: &Told) -> io::Result<()> {
        self.waiting.extend(spans.iter().map(|span| (source.clone(), span.clone())));
        // The oldest are of least use.
        let excess = self.waiting.len().saturating_sub(KEPT);
        self.waiting.drain(..excess);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.waiting.is_empty() {
            let now = self.waiting.len().min(AT_ONCE);
            let request = self.request(&self.waiting[..now]);
            let sent = self.runtime.block_on(self.client.export(request));
            if let Err(problem) = sent {
                if !std::mem::replace(&mut self.is_away, true) {
                    tracing::warn!("the collector of --otlp does not answer, spans are kept for a while: {problem}");
                }
                return Ok(());
            }
            self.is_away = false;
            self.waiting.drain(..now);
        }
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        self.flush()
    }
}

#[cfg(test)]
mod tests {
    use convoy_proto::trace::SpanId;
    use opentelemetry_proto::tonic::collector::trace::v1::{
        ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    };
    use tokio::sync::mpsc;
    use tonic::{Request, Response, Status};

    use super::*;

    struct Listener(mpsc::UnboundedSender<ExportTraceServiceRequest>);

    #[tonic::async_trait]
    impl TraceService for Listener {
        async fn export(
            &self,
            request: Request<ExportTraceServiceRequest>,
        ) -> Result<Response<ExportTraceServiceResponse>, Status> {
            let _ = self.0.send(request.into_inner());
            Ok(Response::new(ExportTraceServiceResponse::default()))
        }
    }

    #[test]
    fn a_collector_gets_spans_that_know_their_callers() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (sender, mut received) = mpsc::unbounded_channel();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let service = TraceServiceServer::new(Listener(sender));
        runtime.spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
        let mut collector = Collector::open(&url, "run").unwrap();
        let span = |id: u64, parent: Option<u64>, name: &str| trace::Span {
            id: SpanId(id),
            parent: parent.map(SpanId),
            name: name.into(),
            track: 0,
            step: 7,
            start_us: 1_000,
            duration_us: 5,
        };
        let source = |role: Role| Source { role, rank: 1, pid: 9, host: "h".into() };
        for (role, span) in [(Role::Worker, span(5, None, "exchange")), (Role::Server, span(6, Some(5), "push-pull"))] {
            collector.add(&Told { source: source(role), spans: vec![span], dropped: 0 }).unwrap();
        }
        collector.end().unwrap();
        let request = received.blocking_recv().unwrap();
        let spans: Vec<_> = request.resource_spans.iter().map(|of| &of.scope_spans[0].spans[0]).collect();
        let (server, worker) = (spans[0], spans[1]);
        assert_eq!((&server.parent_span_id, &server.trace_id), (&worker.span_id, &worker.trace_id));
        assert_eq!((worker.trace_id.len(), worker.end_time_unix_nano), (16, 1_005_000));
        let named = request.resource_spans[0].resource.as_ref().unwrap();
        assert!(named.attributes.contains(&text("service.name", "convoy-server")));
        // A collector that is away holds up nothing.
        let mut away = Collector::open("http://127.0.0.1:9", "run").unwrap();
        away.add(&Told { source: source(Role::Worker), spans: vec![span(1, None, "x")], dropped: 0 }).unwrap();
        assert!(away.end().is_ok() && away.waiting.len() == 1);
        for wrong in ["127.0.0.1:4317", "https://x:1", "ftp://x", ""] {
            assert!(Collector::open(wrong, "run").is_err(), "{wrong}");
        }
    }
}
