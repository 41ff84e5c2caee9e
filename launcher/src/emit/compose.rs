//! A file for Docker Compose: one container that coordinates, and others that join it.

use std::path::Path;

use super::{Job, list, text};
use crate::{args::EmitArgs, remote::credentials::FILES, rendezvous::claims::PORT};

/// The file; certificates are read from a directory beside it.
pub fn file(job: &Job<'_>, certs: &Path) -> String {
    let Job { name, asked: EmitArgs { nodes, workers, image, .. } } = job;
    let endpoint = format!("coordinator:{PORT}");
    let others = nodes - 1;
    let count = nodes.to_string();
    let meeting = ["--nnodes", &count, "--workers", workers, "--rdzv-endpoint", &endpoint, "--rdzv-id", name];
    let place = ["--run-dir", "/runs", "--resume", "auto"];
    // Compose puts variables in where there is a $.
    let arguments: Vec<String> = job.asked.arguments.iter().map(|argument| argument.replace('$', "$$")).collect();
    let command = |rank: &str| {
        let own = meeting.into_iter().chain(["--node-rank", rank]).chain(place);
        list(own.chain(arguments.iter().map(String::as_str)))
    };
    let (directory, image) = (certs.display(), text(image));
    let runs = job.asked.storage.as_deref().unwrap_or("./runs");
    // Without, it would be the name of a volume.
    let runs = if runs.starts_with(['.', '/', '~']) { runs.into() } else { format!("./{runs}") };
    let secrets: String =
        FILES.iter().map(|file| format!("  {file}: {{file: {}}}\n", text(&format!("{directory}/{file}")))).collect();
    let mounts: String =
        FILES.iter().map(|file| format!("    - {{source: {file}, target: /run/secrets/{file}}}\n")).collect();
    let resources = resources(job);
    let node = if others == 0 {
        String::new()
    } else {
        format!(
            "  node:\n    <<: *launcher\n    command: {}\n    depends_on:\n      coordinator: {{condition: \
             service_healthy}}\n    deploy:\n      replicas: {others}\n{resources}",
            command("1")
        )
    };
    format!(
        r#"# Before: launcher certs {directory} --host coordinator --host localhost --host 127.0.0.1
name: {quoted}
x-launcher: &launcher
  image: {image}
  environment:
    CONVOY_CERTS: /run/secrets
  secrets:
{mounts}  volumes:
  - {runs}
  stop_grace_period: 90s
services:
  coordinator:
    <<: *launcher
    command: {command}
    healthcheck:
      test: [CMD, launcher, ping, "{endpoint}"]
      start_period: 60s
      start_interval: 1s
    deploy:
      replicas: 1
{resources}{node}secrets:
{secrets}"#,
        runs = text(&format!("{runs}:/runs")),
        command = command("0"),
        quoted = text(name),
    )
}

fn resources(job: &Job<'_>) -> String {
    let cpus = job.asked.cpus.map(|cpus| format!("cpus: \"{cpus}\""));
    let memory = job
        .asked
        .memory
        .as_ref()
        .map(|memory| format!("memory: {}", text(&memory.replace("Gi", "g").replace("Mi", "m"))));
    let limits: Vec<_> = [cpus, memory].into_iter().flatten().collect();
    let limits = if limits.is_empty() { String::new() } else { format!("        limits: {{{}}}\n", limits.join(", ")) };
    let gpus = if job.asked.gpus == 0 {
        String::new()
    } else {
        format!(
            "        # Each container takes the first ones: on one machine, say device_ids in place of count.\n        reservations:\n          devices:\n          - {{driver: nvidia, count: {}, capabilities: [gpu]}}\n",
            job.asked.gpus
        )
    };
    if limits.is_empty() && gpus.is_empty() { String::new() } else { format!("      resources:\n{limits}{gpus}") }
}
