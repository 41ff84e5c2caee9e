//! A configuration as it is written down: every key present.

use super::{
    Config, Length, RawConfig, Timeouts,
    origins::Origins,
    raw::{CountOrAuto, RawTimeouts},
};

impl From<&Config> for RawConfig {
    fn from(config: &Config) -> Self {
        let (steps, epochs) = match config.length {
            Length::Steps(n) => (Some(n), None),
            Length::Epochs(n) => (None, Some(n)),
        };
        let Timeouts { heartbeat_ms, lease_ms, start_ms, step_ms, restart_ms, stop_ms } = config.timeouts;
        RawConfig {
            name: Some(config.name.clone()),
            run_dir: Some(config.run_dir.clone()),
            workers: Some(CountOrAuto::Count(config.workers.into())),
            local_workers: Some(config.local_workers.into()),
            local_servers: Some(config.local_servers.into()),
            min_workers: Some(config.min_workers.into()),
            max_workers: Some(config.max_workers.into()),
            max_restarts: Some(config.max_restarts.into()),
            servers: Some(config.servers.into()),
            replicas: Some(config.replicas.into()),
            mode: Some(config.mode.name().into()),
            task: Some(config.task.clone()),
            data: Some(config.data.clone()),
            backend: Some(config.backend.to_string()),
            steps,
            epochs,
            batch_size: Some(config.batch_size.into()),
            slices: Some(config.slices.into()),
            grad_accum: Some(1),
            last_batch: Some(config.last_batch.to_string()),
            seed: Some(config.seed),
            eval_every: Some(config.eval_every),
            eval_samples: Some(config.eval_samples.into()),
            patience: Some(config.patience),
            keep_best: Some(config.keep_best),
            precision: Some(config.precision.to_string()),
            loss_scale: Some(config.loss_scale),
            max_skipped: Some(config.max_skipped),
            slow_worker: config.slow_worker.map(|slow| slow.to_string()),
            listen: Some(config.network.listen.to_string()),
            advertise_addr: config.network.advertise_addr.clone(),
            certs: config.network.certs.clone(),
            insecure: config.network.insecure.then_some(true),
            transport: Some(config.network.transport.to_string()),
            codec: Some(config.codec.to_string()),
            chaos: (&config.chaos).into(),
            checkpoint: config.checkpoint.clone().into(),
            consistency: config.mode.into(),
            input: (&config.input).into(),
            optimizer: (&config.optimizer).into(),
            schedule: (&config.schedule).into(),
            model: (&config.model).into(),
            timeouts: RawTimeouts {
                heartbeat_ms: Some(heartbeat_ms.into()),
                lease_ms: Some(lease_ms.into()),
                start_ms: Some(start_ms.into()),
                step_ms: Some(step_ms.into()),
                restart_ms: Some(restart_ms.into()),
                stop_ms: Some(stop_ms.into()),
            },
            watch: (&config.watch).into(),
            origins: Origins::default(),
        }
    }
}
