//! A machine behind a cable that its tensors fill: nobody is lost because control has to wait for them.

use std::time::Duration;

use convoy_tests::{cable::Cable, finish, net::Net};

use crate::{bench, strikes::verify};

/// Tensors of 0.8 MB: a worker's step alone takes the cable longer than a lease that is over soon.
const RUN: &str = "--backend cpu --workers 3 --slices 3 --steps 6 --task mlp --set model.hidden=[256] --eval-every 0 \
                   --set timeouts.heartbeat_ms=100 --set timeouts.lease_ms=1500";

#[test]
fn heartbeats_survive_a_cable_full_of_tensors() {
    let Some(net) = Net::new(2) else { return };
    let bench = bench();
    let calm = bench.train("calm", &RUN.replace("--backend cpu", ""));
    // 10 Mbit/s, and 20 ms to the other side.
    let (delay, queue) = (Duration::from_millis(20), Duration::from_millis(200));
    let cable = Cable { bytes_per_second: 1.25e6, delay, queue };
    let Some(carried) = net.rewire(1, cable) else { return };
    let head = format!("{RUN} --local-workers 1 --listen {}:7000 --insecure --name r", Net::address(0));
    let head = net.command(&bench, 0, &head).spawn().unwrap();
    let join = format!("join {}:7000 --workers 2 --run-dir machine-1", Net::address(0));
    let join = net.command(&bench, 1, &join).spawn().unwrap();
    for child in [head, join] {
        let ended = finish(child);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    }
    let summary = bench.summary("r");
    assert_eq!(summary["params_sha256"], calm["params_sha256"]);
    assert_eq!((summary["faults"].as_u64(), summary["restarts"].as_u64()), (Some(0), Some(0)), "{summary}");
    // It was full: most of what came had to wait for what was before it.
    let bytes: u64 = summary["workers"].as_array().unwrap()[1..]
        .iter()
        .map(|worker| worker["bytes_pushed"].as_u64().unwrap() + worker["bytes_pulled"].as_u64().unwrap())
        .sum();
    assert!(carried.busy() > 0.5 && carried.bytes() > bytes, "{carried:?}, {bytes} of tensors");
    verify(&bench, "r");
    bench.await_no_process();
}
