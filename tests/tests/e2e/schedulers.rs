//! Runs that schedulers start: real ones where Debian has them, recorded environments for the others, and what
//! `launcher emit` prints, read by the types of who is to read it.

use std::{fs, os::unix::fs::symlink, path::Path, process::Command};

use convoy_proto::process;
use convoy_tests::{Bench, Ended, finish, has, net::Net};

use crate::{SMALL, bench, strikes::verify};

/// A scheduler's own cluster on this machine, run for as long as a command.
const SLURM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/slurm/cluster");

fn run(workers: u32) -> String {
    format!("--backend cpu --workers {workers} --steps 40 --slices 4 --name r {SMALL}")
}

/// What one process alone ends with.
fn calm(bench: &Bench) -> serde_json::Value {
    bench.train("calm", &run(4).replace("--backend cpu", "").replace("--name r", ""))
}

/// A shell's line on a machine of its own, in which `launcher` is the program under test.
fn shell(net: &Net, bench: &Bench, line: &str) -> Ended {
    let bin = bench.path().join("bin");
    if !bin.exists() {
        fs::create_dir(&bin).unwrap();
        symlink(env!("CARGO_BIN_EXE_cluster"), bin.join("launcher")).unwrap();
    }
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let mut command = net.run(bench, 0, "bash", ["-c", line]);
    finish(command.env("PATH", path).spawn().unwrap())
}

fn succeeded(ended: &Ended) {
    assert_eq!(ended.code, Some(0), "{}\n{}", ended.stdout, ended.stderr);
}

#[test]
fn open_mpi_starts_a_run() {
    let bench = bench();
    let Some(net) = has("mpirun.openmpi").then(|| Net::new(1)).flatten() else { return };
    let mpirun = "mpirun.openmpi --allow-run-as-root --oversubscribe";
    let told = shell(&net, &bench, &format!("{mpirun} -np 2 launcher doctor --rank --workers 2"));
    succeeded(&told);
    assert!(told.stdout.contains("rank 1 of 2, believed  [OMPI_COMM_WORLD_RANK=1"), "{}", told.stdout);
    assert!(told.stdout.contains("so this launcher joins 127.0.0.1:"), "{}", told.stdout);
    assert!(told.stdout.contains("so this launcher coordinates, listens on 127.0.0.1:"), "{}", told.stdout);
    succeeded(&shell(&net, &bench, &format!("{mpirun} -np 2 launcher {}", run(2))));
    assert_eq!(bench.summary("r")["params_sha256"], calm(&bench)["params_sha256"]);
    assert_eq!(bench.summary("r")["workers"].as_array().map(Vec::len), Some(4));
    verify(&bench, "r");
    bench.await_no_process();
}

#[test]
fn mpich_starts_a_run() {
    let bench = bench();
    let Some(net) = has("mpiexec.hydra").then(|| Net::new(1)).flatten() else { return };
    succeeded(&shell(&net, &bench, &format!("mpiexec.hydra -n 2 launcher {}", run(2))));
    assert_eq!(bench.summary("r")["params_sha256"], calm(&bench)["params_sha256"]);
    verify(&bench, "r");
    bench.await_no_process();
}

#[test]
fn slurm_starts_a_run() {
    let bench = bench();
    let Some(mut net) = has("slurmctld").then(|| Net::new(1)).flatten() else { return };
    net.name_hosts(&format!("127.0.0.1 node1 node2 {}", process::host_name()));
    let srun = |line: &str| shell(&net, &bench, &format!("{SLURM} slurm bash -c '{line}'"));
    let told = srun("srun -N2 -n3 launcher doctor --rank --workers 1");
    succeeded(&told);
    assert!(told.stdout.contains("rank 2 of 3, believed  [SLURM_PROCID=2"), "{}", told.stdout);
    assert!(told.stdout.contains("so this launcher joins node1:"), "{}", told.stdout);
    // Two nodes, and two tasks on one.
    succeeded(&srun(&format!("srun -N2 -n2 launcher --insecure {}", run(2))));
    succeeded(&srun(&format!("srun -N1 -n2 launcher {}", run(2).replace("--name r", "--name one"))));
    let calm = calm(&bench);
    for name in ["r", "one"] {
        assert_eq!(bench.summary(name)["params_sha256"], calm["params_sha256"], "{name}");
        verify(&bench, name);
    }
    // As a batch job, by the script that the launcher prints.
    let rest = run(2).replace("--workers 2", "").replace("--name r", "");
    let script = bench.succeed(&format!("emit slurm --nodes 2 --workers 2 --time 10:00 -- {rest}")).stdout;
    fs::write(bench.path().join("job"), script).unwrap();
    let told = srun("sbatch --wait job; cat *.log");
    succeeded(&told);
    let names = |dir: &str| {
        let entries = fs::read_dir(bench.path().join(dir)).unwrap().flatten();
        entries.map(|entry| entry.file_name().into_string().unwrap()).collect::<Vec<_>>()
    };
    let job = names("runs").into_iter().find(|name| name.starts_with("convoy-"));
    let job = job.unwrap_or_else(|| panic!("{}{}", told.stdout, told.stderr));
    assert_eq!(bench.summary(&job)["params_sha256"], calm["params_sha256"], "{}", told.stdout);
    assert!(!names(".").iter().any(|name| name.starts_with("certs-")), "certificates are left behind");
    bench.await_no_process();
}

/// What `doctor --rank` says in an environment, with nothing of this process's own.
fn doctor(bench: &Bench, environment: &str, arguments: &str) -> Ended {
    let variables = environment.split_whitespace().map(|pair| pair.split_once('=').unwrap());
    let mut command: Command = bench.command(&format!("doctor --rank --workers 1 {arguments}"));
    command.env_clear().envs(variables);
    finish(command.spawn().unwrap())
}

#[test]
fn recorded_environments_are_understood() {
    let bench = bench();
    let cases = [
        // Kubeflow Trainer, a TrainJob of torch's.
        (
            "PET_NNODES=3 PET_NPROC_PER_NODE=1 PET_NODE_RANK=1 PET_MASTER_ADDR=job-node-0-0.job PET_MASTER_PORT=29400 \
             JOB_COMPLETION_INDEX=1",
            "",
            "joins job-node-0-0.job:29400, with 1 worker",
        ),
        // Kubeflow Training Operator, a PyTorchJob.
        (
            "WORLD_SIZE=6 RANK=2 MASTER_ADDR=job-master-0 MASTER_PORT=23456 PET_NNODES=3 PET_NODE_RANK=2 \
             PET_NPROC_PER_NODE=2 PET_MASTER_ADDR=job-master-0 PET_MASTER_PORT=23456",
            "",
            "joins job-master-0:23456",
        ),
        // torchrun, whose own store has the port.
        (
            "RANK=1 WORLD_SIZE=2 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 \
             TORCHELASTIC_RUN_ID=none TORCHELASTIC_USE_AGENT_STORE=True",
            "",
            "joins 127.0.0.1:3",
        ),
        // Horovod, on one machine.
        ("HOROVOD_RANK=1 HOROVOD_SIZE=2 HOROVOD_LOCAL_RANK=1 HOROVOD_LOCAL_SIZE=2", "", "joins 127.0.0.1:29400"),
        // An Indexed Job, as `launcher emit k8s` makes it.
        (
            "JOB_COMPLETION_INDEX=1 CONVOY_NNODES=2 CONVOY_RDZV_ENDPOINT=convoy-0.convoy:29400 CONVOY_RDZV_ID=convoy",
            "",
            "joins convoy-0.convoy:29400",
        ),
        // MPI inside of a job of Slurm's, whose own variables are those of MPI's daemons.
        (
            "OMPI_COMM_WORLD_RANK=3 OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_LOCAL_RANK=1 OMPI_COMM_WORLD_LOCAL_SIZE=2 \
             SLURM_PROCID=1 SLURM_STEP_NUM_TASKS=2 MASTER_ADDR=node1",
            "",
            "joins node1:29400",
        ),
        // A flag is believed before all of them.
        ("RANK=1 WORLD_SIZE=2 MASTER_ADDR=node1", "--rdzv-endpoint node2:5", "joins node2:5"),
        ("RANK=1 WORLD_SIZE=2 MASTER_ADDR=node1", "--standalone", "trains alone"),
        // A batch script's own shell.
        ("SLURM_JOB_ID=1 SLURM_PROCID=0 SLURM_NTASKS=2 SLURM_JOB_NUM_NODES=2", "", "trains alone"),
        ("JOB_COMPLETION_INDEX=1", "", "trains alone"),
    ];
    for (environment, arguments, expected) in cases {
        let told = doctor(&bench, environment, arguments);
        assert_eq!(told.code, Some(0), "{environment}: {}", told.stderr);
        assert!(told.stdout.contains(expected), "{environment}: {}", told.stdout);
    }
    for (environment, code, expected) in [
        ("RANK=2 WORLD_SIZE=2 MASTER_ADDR=node1", 2, "torch started this, but RANK=2 is not below WORLD_SIZE=2"),
        ("PMI_RANK=0 PMI_SIZE=2 MPI_LOCALRANKID=0 MPI_LOCALNRANKS=1", 2, "MPICH starts launchers on several machines"),
        ("PET_NNODES=2:3 PET_NPROC_PER_NODE=2", 2, "neither PET_NODE_RANK nor PET_RDZV_ENDPOINT is there"),
        ("PMI_RANK=0 PMI_SIZE=2 PMI_LOCAL_RANK=0", 2, "PMI_SIZE=2, but MPI_LOCALRANKID"),
        ("RANK=0 WORLD_SIZE=2 MASTER_ADDR=no.such.host.invalid --rdzv-wait", 3, "cannot resolve MASTER_ADDR"),
    ] {
        let (environment, arguments) =
            environment.strip_suffix(" --rdzv-wait").map_or((environment, ""), |rest| (rest, "--rdzv-wait 0"));
        let told = doctor(&bench, environment, arguments);
        assert_eq!(told.code, Some(code), "{environment}: {}{}", told.stdout, told.stderr);
        assert!(told.stderr.contains(expected), "{environment}: {}", told.stderr);
    }
}

/// Whether a document is what its reader's type makes of it: no field is unknown to that, none is missing.
fn reads<T: serde::Serialize + serde::de::DeserializeOwned>(document: &serde_json::Value) {
    let read: T = serde_json::from_value(document.clone()).unwrap_or_else(|problem| panic!("{problem}: {document}"));
    assert_eq!(serde_json::to_value(&read).unwrap(), *document);
}

fn documents(text: &str) -> Vec<serde_json::Value> {
    serde_saphyr::from_multiple(text).unwrap_or_else(|problem| panic!("{problem}:\n{text}"))
}

#[test]
fn manifests_are_what_kubernetes_reads() {
    use k8s_openapi::api::{
        batch::v1::{Job, JobTemplateSpec},
        core::v1::{Secret, Service},
    };
    let bench = bench();
    let flags = "--nodes 3 --workers 4 --gpus 4 --cpus 8 --memory 64Gi --storage runs --name job -- --data text:/d";
    let text = bench.succeed(&format!("emit k8s {flags}")).stdout;
    let all = documents(&text);
    assert_eq!(all.len(), 3);
    reads::<Secret>(&all[0]);
    reads::<Service>(&all[1]);
    reads::<Job>(&all[2]);
    let job: Job = serde_json::from_value(all[2].clone()).unwrap();
    let spec = job.spec.unwrap();
    assert_eq!(
        (spec.completions, spec.parallelism, spec.completion_mode.as_deref()),
        (Some(3), Some(3), Some("Indexed"))
    );
    let pod = spec.template.spec.unwrap();
    let container = &pod.containers[0];
    assert!(container.readiness_probe.is_some() && container.startup_probe.is_some());
    assert_eq!(container.resources.as_ref().unwrap().limits.as_ref().unwrap()["nvidia.com/gpu"].0, "4");
    assert_eq!(all[1]["spec"]["clusterIP"], "None");
    // The launcher makes of it what it is meant to.
    let variables: Vec<String> =
        container.env.iter().flatten().map(|v| format!("{}={}", v.name, v.value.as_ref().unwrap())).collect();
    let told = doctor(
        &bench,
        &format!("{} JOB_COMPLETION_INDEX=2", variables.join(" ")).replace("CONVOY_CERTS=/etc/convoy/certs", ""),
        "",
    );
    assert!(told.stdout.contains("joins job-0.job:29400"), "{}{}", told.stdout, told.stderr);
    let set = documents(&bench.succeed(&format!("emit jobset {flags}")).stdout);
    assert_eq!((set.len(), set[1]["kind"].as_str()), (2, Some("JobSet")));
    reads::<Secret>(&set[0]);
    let jobs = set[1]["spec"]["replicatedJobs"].as_array().unwrap();
    jobs.iter().for_each(|job| reads::<JobTemplateSpec>(&job["template"]));
    let container = &jobs[0]["template"]["spec"]["template"]["spec"]["containers"][0];
    let rank = container["env"].as_array().unwrap().iter().find(|v| v["name"] == "CONVOY_NODE_RANK").unwrap();
    assert!(rank["valueFrom"]["fieldRef"]["fieldPath"].as_str().unwrap().contains("job-completion-index"));
}

#[test]
fn credentials_in_a_secret_start_a_run() {
    let bench = bench();
    let all = documents(&bench.succeed("emit k8s --nodes 2").stdout);
    let certs = bench.path().join("certs");
    fs::create_dir(&certs).unwrap();
    for (name, text) in all[0]["stringData"].as_object().unwrap() {
        fs::write(certs.join(name), text.as_str().unwrap()).unwrap();
    }
    bench.train("r", &format!("--workers 2 --steps 5 --certs certs {SMALL}"));
}

#[test]
fn a_compose_file_is_one() {
    let bench = bench();
    let text =
        bench.succeed("emit compose --nodes 3 --workers 2 --gpus 1 --memory 8Gi --storage my -- --epochs 1").stdout;
    let file = &documents(&text)[0];
    let services = file["services"].as_object().unwrap();
    assert_eq!(services.keys().collect::<Vec<_>>(), ["coordinator", "node"]);
    assert_eq!(services["node"]["deploy"]["replicas"], 2);
    let test = &services["coordinator"]["healthcheck"]["test"];
    assert_eq!(*test, serde_json::json!(["CMD", "launcher", "ping", "coordinator:29400"]));
    assert_eq!(services["node"]["volumes"][0], "./my:/runs");
    for service in services.values() {
        // What is common to both is there by reference.
        assert_eq!((&service["image"], &service["secrets"][3]["source"]), (&"convoy:latest".into(), &"token".into()));
        let words: Vec<_> = service["command"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
        // As the program reads it.
        let plan = format!("{} --dry-run --standalone-check", words.join(" ")).replace(" --standalone-check", "");
        let plan = plan.replace("coordinator:29400", "127.0.0.1:29400").replace("/runs", "runs");
        bench.succeed(&format!("--backend cpu {plan}"));
    }
    for name in ["A", "-a", "a_b", "a-"] {
        assert_eq!(bench.run(&format!("emit k8s --name={name}")).code, Some(2), "{name}");
    }
    let ours = bench.run("emit k8s -- --nnodes 3");
    assert!(ours.code == Some(2) && ours.stderr.contains("--nnodes after -- is not yours to say"), "{}", ours.stderr);
}

#[test]
fn a_probe_says_whether_a_run_is_there() {
    let bench = bench();
    let nobody = bench.run("ping 127.0.0.1:1");
    assert!(nobody.code == Some(3) && nobody.stderr.contains("cannot reach the coordinator"), "{}", nobody.stderr);
    let child =
        bench.command(&format!("--backend cpu --steps 200 --slow-worker any:20ms --name r {SMALL}")).spawn().unwrap();
    bench.await_steps("r", 3);
    let there = bench.json("r", "coordinator.json")["address"].as_str().unwrap().to_string();
    assert!(bench.succeed(&format!("ping {there}")).stdout.contains("answers within"));
    let told = finish(bench.command("ping").env("CONVOY_RDZV_ENDPOINT", &there).spawn().unwrap());
    succeeded(&told);
    succeeded(&finish(child));
    assert!(Path::new(&bench.run_dir("r")).exists());
}
