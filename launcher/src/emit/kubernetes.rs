//! Manifests for Kubernetes: an Indexed Job, or a JobSet, with what they need.

use std::{collections::BTreeMap, fmt::Write};

use super::{Job, list, text};
use crate::{args::EmitArgs, rendezvous::claims::PORT};

/// Where pods find certificates.
const CERTS: &str = "/etc/convoy/certs";
/// Where they keep runs.
const RUNS: &str = "/runs";

/// A host's name of a pod.
fn pod(job: &Job<'_>, index: u32, is_set: bool) -> String {
    let name = &job.name;
    if is_set { format!("{name}-node-0-{index}.{name}") } else { format!("{name}-{index}.{name}") }
}

/// What certificates have to be for.
pub fn hosts(job: &Job<'_>, is_set: bool) -> Vec<String> {
    let pods = (0..job.asked.nodes).map(|index| pod(job, index, is_set));
    pods.chain(["localhost".into(), "127.0.0.1".into()]).collect()
}

/// A Secret with certificates and a token, a headless Service, and an Indexed Job.
pub fn indexed_job(job: &Job<'_>, files: &BTreeMap<String, String>) -> String {
    let name = &job.name;
    let rank = "";
    let spec = job_spec(job, &pod(job, 0, false), rank, 2);
    let selector = format!("batch.kubernetes.io/job-name: {name}");
    format!(
        "{}---\n{}---\n# Each pod starts a launcher; that of index 0 coordinates.\napiVersion: batch/v1\nkind: Job\nmetadata:\n  \
         name: {name}\nspec:\n{spec}",
        secret(job, files),
        service(job, &selector),
    )
}

/// A Secret with certificates and a token, and a JobSet, which makes its headless Service by itself.
pub fn job_set(job: &Job<'_>, files: &BTreeMap<String, String>) -> String {
    let name = &job.name;
    // A JobSet's pods learn their index from an annotation.
    let rank = "\n- name: CONVOY_NODE_RANK\n  valueFrom:\n    fieldRef:\n      fieldPath: \
                metadata.annotations['batch.kubernetes.io/job-completion-index']";
    let spec = job_spec(job, &pod(job, 0, true), rank, 8);
    format!(
        "{}---\n# Each pod starts a launcher; that of index 0 coordinates.\napiVersion: jobset.x-k8s.io/v1alpha2\nkind: \
         JobSet\nmetadata:\n  name: {name}\nspec:\n  network:\n    enableDNSHostnames: true\n    subdomain: {name}\n    \
         publishNotReadyAddresses: true\n  failurePolicy:\n    maxRestarts: 3\n    rules:\n    - name: asked-for-wrongly\n      action: FailJobSet\n      onJobFailureReasons: [PodFailurePolicy]\n  replicatedJobs:\n  - name: node\n    \
         replicas: 1\n    template:\n      spec:\n{spec}",
        secret(job, files),
    )
}

fn secret(job: &Job<'_>, files: &BTreeMap<String, String>) -> String {
    let mut yaml = format!(
        "# Keep this to yourself: whoever has it may take part in the run.\napiVersion: v1\nkind: Secret\nmetadata:\n  name: \
         {}-certs\nstringData:\n",
        job.name
    );
    for (name, content) in files {
        // Writing to a string cannot fail.
        let _ = writeln!(yaml, "  {name}: {}", text(content));
    }
    yaml
}

/// Pods are found by name before they are ready: that is when they look for each other.
fn service(job: &Job<'_>, selector: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\nspec:\n  clusterIP: None\n  publishNotReadyAddresses: \
         true\n  selector:\n    {selector}\n  ports:\n  - name: coordinator\n    port: {port}\n",
        name = job.name,
        port = PORT,
    )
}

/// The Job's specification, so many spaces from the left.
fn job_spec(job: &Job<'_>, first: &str, rank: &str, indent: usize) -> String {
    let nodes = job.asked.nodes;
    let pod = pod_spec(job, first, rank);
    // What was asked for wrongly fails again; who was told to stop, or moved to another machine, goes on.
    let spec = format!(
        r#"completions: {nodes}
parallelism: {nodes}
completionMode: Indexed
backoffLimit: {retries}
podFailurePolicy:
  rules:
  - action: FailJob
    onExitCodes:
      operator: In
      values: [2, 5]
  - action: Ignore
    onPodConditions:
    - {{type: DisruptionTarget, status: "True"}}
# The run is over when the coordinator says so.
successPolicy:
  rules:
  - {{succeededIndexes: "0"}}
template:
  spec:
{pod}"#,
        retries = 3 * nodes,
        pod = indented(&pod, 4),
    );
    indented(&spec, indent)
}

fn pod_spec(job: &Job<'_>, first: &str, rank: &str) -> String {
    let Job { name, asked: EmitArgs { workers, image, .. } } = job;
    let command = ["--workers", workers, "--name", name, "--resume", "auto", "--run-dir", RUNS];
    // What the launcher is to have as it is, and not what it names.
    let own: Vec<String> = job.asked.arguments.iter().map(|argument| argument.replace("$(", "$$(")).collect();
    let arguments = list(command.into_iter().chain(own.iter().map(String::as_str)));
    let storage = match &job.asked.storage {
        Some(claim) => format!("persistentVolumeClaim: {{claimName: {}}}", text(claim)),
        // Gone with the pod: --storage names a claim that is not.
        None => "emptyDir: {}".into(),
    };
    format!(
        r#"subdomain: {name}
restartPolicy: Never
# Finishes the step and writes a checkpoint.
terminationGracePeriodSeconds: 90
automountServiceAccountToken: false
# Variables of services would be taken for the launcher's.
enableServiceLinks: false
containers:
- name: launcher
  image: {image}
  args: {arguments}
  env:
  - {{name: CONVOY_NNODES, value: "{nodes}"}}
  - {{name: CONVOY_RDZV_ENDPOINT, value: "{first}:{port}"}}
  - {{name: CONVOY_RDZV_ID, value: {quoted}}}
  - {{name: CONVOY_CERTS, value: {CERTS}}}{rank}
  ports:
  - {{name: coordinator, containerPort: {port}}}
  startupProbe:
    exec: {{command: [launcher, ping]}}
    periodSeconds: 5
    timeoutSeconds: 5
    # An image, data and the first pod may take their time.
    failureThreshold: 360
  readinessProbe:
    exec: {{command: [launcher, ping]}}
    periodSeconds: 10
    timeoutSeconds: 5
{resources}  volumeMounts:
  - {{name: certs, mountPath: {CERTS}, readOnly: true}}
  - {{name: runs, mountPath: {RUNS}}}
volumes:
- name: certs
  secret: {{secretName: {name}-certs, defaultMode: 256}}
- name: runs
  {storage}
"#,
        image = text(image),
        quoted = text(name),
        nodes = job.asked.nodes,
        port = PORT,
        rank = indented(rank, 2).trim_end_matches('\n'),
        resources = resources(job),
    )
}

fn resources(job: &Job<'_>) -> String {
    let gpus = (job.asked.gpus > 0).then(|| format!("nvidia.com/gpu: \"{}\"", job.asked.gpus));
    let cpus = job.asked.cpus.map(|cpus| format!("cpu: \"{cpus}\""));
    let memory = job.asked.memory.as_ref().map(|memory| format!("memory: {}", text(memory)));
    let limits: Vec<_> = [gpus, cpus, memory].into_iter().flatten().collect();
    if limits.is_empty() { String::new() } else { format!("  resources:\n    limits: {{{}}}\n", limits.join(", ")) }
}

/// Lines, so many spaces further from the left.
fn indented(lines: &str, by: usize) -> String {
    let margin = " ".repeat(by);
    let indent = |line: &str| if line.is_empty() { "\n".into() } else { format!("{margin}{line}\n") };
    lines.lines().map(indent).collect()
}
