//! Which devices there are, and why others are not.

use convoy_proto::config::Backend;
use convoy_worker::{
    device::{BackendReport, FoundDevice},
    monitor,
};

use super::Finding;
use crate::probe;

/// Looks for all.
pub fn look() -> Vec<Finding> {
    let mut findings: Vec<Finding> = probe::probe().iter().map(finding).collect();
    findings.push(match monitor::devices() {
        Ok(devices) => Finding::good("NVML", devices.join("; ")),
        Err(why) => Finding::note("NVML", why, "only needed to show how busy NVIDIA GPUs are"),
    });
    findings
}

fn finding(report: &BackendReport) -> Finding {
    let (what, missing) = match report.backend {
        Backend::Cuda => (
            "CUDA",
            "for NVIDIA GPUs: install their driver; in a container, give it the GPUs (docker run --gpus all). Without, workers \
             compute on other devices",
        ),
        _ => (
            "Vulkan (wgpu)",
            "for other GPUs: install a Vulkan loader and a driver (Debian: libvulkan1 and mesa-vulkan-drivers). Without, \
             workers compute on other devices",
        ),
    };
    match &report.devices {
        Err(why) => Finding::note(what, why.as_str(), missing),
        Ok(devices) if devices.iter().all(FoundDevice::is_software) => Finding::note(
            what,
            format!("only the processor in disguise: {}", named(devices)),
            "used if it is asked for (--backend wgpu); the CPU backend is about ten times as fast",
        ),
        Ok(devices) => Finding::good(what, named(devices)),
    }
}

fn named(devices: &[FoundDevice]) -> String {
    devices.iter().map(|device| format!("{} ({})", device.about, device.name)).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::State;

    #[test]
    fn what_is_not_there_is_explained() {
        let none = BackendReport { backend: Backend::Cuda, devices: Err("no NVIDIA driver".into()) };
        let said = finding(&none);
        assert!(said.state == State::Note && said.found == "no NVIDIA driver" && said.advice.is_some());
        let device = |name: &str| FoundDevice { name: name.parse().unwrap(), about: "x".into() };
        let report = |name: &str| BackendReport { backend: Backend::Wgpu, devices: Ok(vec![device(name)]) };
        assert_eq!(finding(&report("wgpu:software:0")).state, State::Note);
        assert_eq!(finding(&report("wgpu:discrete:0")).line(), "ok    Vulkan (wgpu)     x (wgpu:discrete:0)\n");
    }
}
