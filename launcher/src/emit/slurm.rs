//! A batch script for Slurm.

use std::fmt::Write;

use super::Job;
use crate::remote::quoted;

/// The script: one launcher a node, which finds the others by itself.
pub fn script(job: &Job<'_>) -> String {
    let mut options = vec![
        format!("--job-name={}", job.name),
        format!("--nodes={}", job.asked.nodes),
        "--ntasks-per-node=1".to_string(),
    ];
    options.extend(job.asked.cpus.map(|cpus| format!("--cpus-per-task={cpus}")));
    options.extend((job.asked.gpus > 0).then(|| format!("--gpus-per-node={}", job.asked.gpus)));
    // Its units are binary ones without saying so.
    options.extend(job.asked.memory.as_ref().map(|memory| format!("--mem={}", memory.trim_end_matches('i'))));
    options.extend(job.asked.time.as_ref().map(|time| format!("--time={time}")));
    // Before time is up, a checkpoint; after a node was lost, the same job again, which goes on.
    options.extend(["--signal=TERM@120", "--requeue", "--open-mode=append", "--output=%x-%j.log"].map(String::from));
    let mut text = String::from("#!/bin/bash\n");
    for option in options {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "#SBATCH {option}");
    }
    let root = job.asked.storage.as_ref().map(|storage| format!(" --run-dir {}", quoted(storage))).unwrap_or_default();
    let arguments: String = job.asked.arguments.iter().map(|argument| format!(" {}", quoted(argument))).collect();
    text + &format!(
        r#"# `launcher` must be in PATH on all nodes, and this directory be the same on them.
set -euo pipefail
name={name}-$SLURM_JOB_ID
certs=$PWD/certs-$SLURM_JOB_ID

# Certificates for the nodes of this job, and its secret; other nodes if it was requeued.
rm -rf "$certs"
hosts=()
for host in $(scontrol show hostnames "$SLURM_JOB_NODELIST"); do hosts+=(--host "$host"); done
(umask 077; launcher certs "$certs" "${{hosts[@]}}" --host localhost --host 127.0.0.1)
trap 'rm -rf "$certs"' EXIT

# The first node coordinates: launchers find each other by Slurm's variables (launcher doctor --rank).
srun --kill-on-bad-exit=0 --wait=0{cores} launcher --workers {workers} --name "$name" --rdzv-id "$name" --resume auto \
    --certs "$certs"{root}{arguments}
"#,
        name = job.name,
        workers = job.asked.workers,
        // Steps do not get the job's by themselves in some versions.
        cores = job.asked.cpus.map(|cpus| format!(" --cpus-per-task={cpus}")).unwrap_or_default(),
    )
}
