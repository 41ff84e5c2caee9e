//! Who talks to whom, and how much: what a plan says of a run's links before anything is started. Pure.

use std::{collections::BTreeSet, fmt::Write};

use convoy_proto::{
    blocks::BlockMap,
    codec::Codec,
    config::{Config, LocalSteps, Mode, Transport},
    ids::{ServerId, SliceId},
    layout::Layout,
    manifest::Manifest,
    order,
    tree::SliceTree,
};

/// Bytes of a parameter on the way.
const ELEMENT: f64 = 4.0;
/// What of a step is worth a hint, in milliseconds.
const WORTH_MS: f64 = 5.0;
/// The speed that a network is measured against, in bytes a second: 10 Gbit/s.
const NETWORK: f64 = 1.25e9;

/// What goes between a worker and a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// From this worker.
    pub worker: u32,
    /// To this server.
    pub server: u32,
    /// Bytes of gradients, a step.
    pub pushed: u64,
    /// Bytes of parameters, a step.
    pub pulled: u64,
    /// Whether both ends are on the coordinator's machine.
    pub is_here: bool,
}

/// All links of a run as it begins. Where slices are dealt out, all workers are taken to be equally quick.
pub fn links(config: &Config, manifest: &Manifest) -> Vec<Link> {
    let (layout, map) = (Layout::of(config), BlockMap::new(manifest, config.servers));
    let elements = |server: ServerId| -> u64 {
        map.of_shard(layout.shard_of(server)).map(|block| block.range().len() as u64).sum()
    };
    let servers: Vec<(ServerId, u64)> = (0..layout.servers()).map(ServerId).map(|id| (id, elements(id))).collect();
    let workers = (0..config.workers).flat_map(|worker| {
        let (pushes, pulls) = per_step(config, worker);
        let link = move |&(server, elements): &(ServerId, u64)| Link {
            worker,
            server: server.0,
            pushed: (elements as f64 * pushes * config.codec.bytes_per_element()) as u64,
            // Of the copies of a shard, one answers.
            pulled: if server.0 < layout.shards() { (elements as f64 * pulls * ELEMENT) as u64 } else { 0 },
            is_here: worker < config.local_workers && server.0 < config.local_servers,
        };
        servers.iter().map(link).collect::<Vec<_>>()
    });
    workers.filter(|link| link.pushed + link.pulled > 0).collect()
}

/// How many gradients a worker pushes and how often it pulls, a step.
fn per_step(config: &Config, worker: u32) -> (f64, f64) {
    let (slices, workers) = (config.slices, config.workers);
    if config.mode.is_dealt() {
        let share = f64::from(slices) / f64::from(workers);
        return (share, share);
    }
    let parts = slices.min(workers);
    if worker >= parts {
        // A spare follows.
        return (0.0, 1.0);
    }
    let owned: BTreeSet<SliceId> =
        order::share(slices.into(), worker, parts).map(|slice| SliceId(slice as u32)).collect();
    // What a codec loses, it loses of each slice by itself.
    let nodes = if config.codec.is_lossy() { owned.len() } else { SliceTree::new(slices).cover(&owned).len() };
    match config.mode {
        // A round of so many steps ends in one exchange.
        Mode::Local(LocalSteps { steps, .. }) => (nodes as f64 / f64::from(steps), 1.0 / f64::from(steps)),
        _ => (nodes as f64, 1.0),
    }
}

/// The links, those of workers that are alike on one line, and what goes over the network.
pub fn describe(config: &Config, links: &[Link]) -> String {
    let mut text = String::from("who talks to whom, a step\n");
    let alike = |a: &[Link], b: &[Link]| {
        a.len() == b.len()
            && a.iter()
                .zip(b)
                .all(|(a, b)| (a.server, a.pushed, a.pulled, a.is_here) == (b.server, b.pushed, b.pulled, b.is_here))
    };
    let of_worker: Vec<&[Link]> = links.chunk_by(|a, b| a.worker == b.worker).collect();
    for group in of_worker.chunk_by(|a, b| alike(a, b)) {
        let (first, last) = (group[0][0].worker, group[group.len() - 1][0].worker);
        let (who, each) =
            if first == last { (format!("worker {first}"), "") } else { (format!("workers {first}-{last}"), " each") };
        let place = if first < config.local_workers { "here" } else { "elsewhere" };
        for link in group[0] {
            let server = if link.server < config.local_servers { "here" } else { "elsewhere" };
            let way = match (link.is_here, config.network.transport) {
                (false, _) => "over the network",
                (true, Transport::Grpc) => "over loopback",
                (true, Transport::Auto | Transport::Shm) => "through shared memory",
            };
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "  {who} ({place}) - server {} ({server}), {way}: pushes {}, pulls {}{each}",
                link.server,
                bytes(link.pushed),
                bytes(link.pulled),
            );
        }
    }
    text + &network(config, links)
}

/// What a step's links make of the network of the coordinator's machine.
fn network(config: &Config, links: &[Link]) -> String {
    let far = links.iter().filter(|link| !link.is_here);
    let crosses = far.filter(|link| link.worker < config.local_workers || link.server < config.local_servers);
    let (mut into, mut out) = (0, 0);
    for link in crosses {
        let (to_server, to_worker) = (link.pushed, link.pulled);
        let is_server_here = link.server < config.local_servers;
        into += if is_server_here { to_server } else { to_worker };
        out += if is_server_here { to_worker } else { to_server };
    }
    if into + out == 0 {
        return "  nothing goes over the network\n".into();
    }
    let least = into.max(out) as f64 / NETWORK * 1e3;
    let (into, out) = (bytes(into), bytes(out));
    let text = format!(
        "  over the network of this machine: {into} in, {out} out, at least {least:.1} ms of a step at 10 Gbit/s\n"
    );
    text + hint(config, least)
}

/// What would lower it.
fn hint(config: &Config, least_ms: f64) -> &'static str {
    match (config.network.transport, config.codec) {
        (Transport::Shm, _) => {
            "  --transport shm is for one machine: workers on others will not start; auto is for both\n"
        }
        (_, Codec::F32) if least_ms >= WORTH_MS => {
            "  pushed with --codec bf16 it would be half, with int8 a quarter, with topk:0.01 a sixtieth of what is pushed\n"
        }
        _ => "",
    }
}

/// Bytes, for people.
fn bytes(count: u64) -> String {
    match count {
        0 => "nothing".into(),
        1..=9_999 => format!("{count} B"),
        10_000..=9_999_999 => format!("{:.1} kB", count as f64 / 1e3),
        _ => format!("{:.1} MB", count as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use convoy_proto::{config::layers::Layers, manifest::TensorRole};

    use super::*;

    fn of(flags: &[(&str, &str)]) -> (Config, Vec<Link>) {
        let flags: Vec<_> = flags.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        let config = Layers::new().texts("test", &flags).unwrap().raw().unwrap().resolve(1).unwrap();
        let manifest = Manifest::new([("w".into(), vec![1000], TensorRole::Trainable)]).unwrap();
        let links = links(&config, &manifest);
        (config, links)
    }

    #[test]
    fn each_worker_pushes_what_it_sums_and_pulls_all() {
        let (config, links) = of(&[("workers", "3"), ("slices", "4")]);
        // The third owns slices 2 and 3, which are one node; the others one each.
        let moved: Vec<_> = links.iter().map(|link| (link.worker, link.pushed, link.pulled, link.is_here)).collect();
        assert_eq!(moved, [(0, 4000, 4000, true), (1, 4000, 4000, true), (2, 4000, 4000, true)]);
        let text = describe(&config, &links);
        assert!(text.contains("workers 0-2 (here) - server 0 (here), through shared memory: pushes 4000 B"), "{text}");
        assert!(text.contains("nothing goes over the network"), "{text}");
    }

    #[test]
    fn copies_are_pushed_to_and_one_is_pulled_from() {
        let (_, links) = of(&[("workers", "1"), ("replicas", "1")]);
        let moved: Vec<_> = links.iter().map(|link| (link.server, link.pushed, link.pulled)).collect();
        assert_eq!(moved, [(0, 4000, 4000), (1, 4000, 0)]);
    }

    #[test]
    fn what_goes_to_other_machines_is_added_up() {
        let (config, links) = of(&[("workers", "4"), ("local_workers", "1"), ("slices", "3")]);
        let text = describe(&config, &links);
        // Two others push, all three pull: the last is a spare.
        assert!(text.contains("over the network of this machine: 8000 B in, 12.0 kB out"), "{text}");
        assert!(text.contains("worker 3 (elsewhere) - server 0 (here), over the network: pushes nothing"), "{text}");
        let (_, rounds) = of(&[("workers", "2"), ("mode", "local"), ("consistency.local_steps", "10")]);
        assert_eq!((rounds[0].pushed, rounds[0].pulled), (400, 400));
    }

    #[test]
    fn codecs_push_less_of_each_slice_and_hints_say_so() {
        let far = [("workers", "2"), ("local_workers", "1"), ("slices", "4")];
        let with = |more: &[(&str, &str)]| of(&[&far, more].concat());
        let pushed = |more: &[(&str, &str)]| with(more).1[0].pushed;
        // Two slices are one node, unless each is encoded by itself.
        assert_eq!([pushed(&[]), pushed(&[("codec", "int8")]), pushed(&[("codec", "topk:0.1")])], [4000, 2000, 1200]);
        let large = vec![Link { worker: 1, server: 0, pushed: 50_000_000, pulled: 50_000_000, is_here: false }];
        let hinted = |more: &[(&str, &str)]| describe(&with(more).0, &large);
        assert!(hinted(&[]).contains("--codec bf16") && !hinted(&[("codec", "int8")]).contains("--codec"));
        assert!(hinted(&[("transport", "shm")]).contains("auto is for both"));
        assert!(describe(&with(&[("transport", "grpc")]).0, &with(&[]).1).contains("over loopback"));
    }
}
