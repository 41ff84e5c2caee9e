//! Who computes where: a pure function of what was asked for and what was found.

use convoy_proto::config::Backend;
use convoy_worker::device::{BackendReport, DeviceName, FoundDevice};

/// Where workers compute, and why there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Devices {
    /// The backend.
    pub backend: Backend,
    /// Its devices, at least one.
    pub devices: Vec<FoundDevice>,
    /// Why other backends were passed over, one line each.
    pub passed_over: Vec<String>,
}

/// A launcher's part of a machine on which there are several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Which launcher of the machine's, from 0.
    pub rank: u32,
    /// How many there are.
    pub size: u32,
}

impl Default for Share {
    /// All of it.
    fn default() -> Self {
        Share { rank: 0, size: 1 }
    }
}

/// One worker's part of the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerPlan {
    /// Its device.
    pub device: FoundDevice,
    /// Threads for computing on the CPU; none for a GPU.
    pub threads: Option<usize>,
}

impl WorkerPlan {
    /// What a worker is told of it on its command line.
    pub fn arguments(&self) -> Vec<String> {
        let device =
            ["--device".into(), self.device.name.to_string(), "--device-name".into(), self.device.about.clone()];
        let threads = self.threads.map(|threads| ["--threads".to_string(), threads.to_string()]);
        device.into_iter().chain(threads.into_iter().flatten()).collect()
    }
}

/// The processor, as a device.
pub fn processor(cores: usize) -> FoundDevice {
    let about = format!("processor, {cores} {}", if cores == 1 { "core" } else { "cores" });
    FoundDevice { name: DeviceName::Cpu, about }
}

/// Chooses the devices of a backend; `auto` takes the first of CUDA, WGPU and CPU that opens, and prefers the CPU to a
/// Vulkan device in software.
///
/// # Errors
/// The backend that was asked for has no device; says why.
pub fn choose(wanted: Backend, reports: &[BackendReport], cores: usize) -> Result<Devices, String> {
    let found = |backend: Backend| {
        let report = reports.iter().find(|report| report.backend == backend);
        report.map_or(Err("was not looked for".to_string()), |report| report.devices.clone())
    };
    let cpu = |passed_over| Devices { backend: Backend::Cpu, devices: vec![processor(cores)], passed_over };
    if wanted == Backend::Cpu {
        return Ok(cpu(Vec::new()));
    }
    if wanted != Backend::Auto {
        let devices = found(wanted).map_err(|reason| format!("--backend {wanted}: {reason}"))?;
        return Ok(Devices { backend: wanted, devices: hardware_first(devices), passed_over: Vec::new() });
    }
    let mut passed_over = Vec::new();
    for backend in [Backend::Cuda, Backend::Wgpu] {
        match found(backend) {
            Ok(devices) if !devices.iter().all(FoundDevice::is_software) => {
                return Ok(Devices { backend, devices: hardware_first(devices), passed_over });
            }
            Ok(devices) => {
                let names: Vec<_> = devices.iter().map(|device| device.about.as_str()).collect();
                passed_over
                    .push(format!("{backend}: only in software ({}), slower than the CPU backend", names.join(", ")));
            }
            Err(reason) => passed_over.push(format!("{backend}: {reason}")),
        }
    }
    Ok(cpu(passed_over))
}

/// Drops devices in software where there are others.
fn hardware_first(devices: Vec<FoundDevice>) -> Vec<FoundDevice> {
    if devices.iter().all(FoundDevice::is_software) {
        return devices;
    }
    devices.into_iter().filter(|device| !device.is_software()).collect()
}

impl Devices {
    /// A launcher's part of the devices: every so-manieth, or where there are fewer, one that it shares.
    pub fn shared(mut self, share: Share) -> Devices {
        let (rank, size, count) = (share.rank as usize, share.size as usize, self.devices.len());
        let mine = self.devices.iter().enumerate().filter(|(at, _)| at % size == rank % count.min(size));
        self.devices = mine.map(|(_, device)| device.clone()).collect();
        self
    }

    /// How many workers `auto` means: one a GPU, and one that uses all cores on the CPU.
    pub fn auto_workers(&self) -> u32 {
        self.devices.len() as u32
    }

    /// Deals devices out round robin; CPU workers divide the cores.
    pub fn deal(&self, workers: u32, cores: usize) -> Vec<WorkerPlan> {
        let share = (cores / workers.max(1) as usize).max(1);
        let worker = |rank: u32| {
            let device = self.devices[rank as usize % self.devices.len()].clone();
            let threads = (device.name == DeviceName::Cpu || device.is_software()).then_some(share);
            WorkerPlan { device, threads }
        };
        (0..workers).map(worker).collect()
    }
}

#[cfg(test)]
mod tests {
    use convoy_worker::device::GpuClass;

    use super::*;

    fn device(name: DeviceName) -> FoundDevice {
        FoundDevice { name, about: name.to_string() }
    }

    fn reports(cuda: Result<usize, &str>, wgpu: &[(GpuClass, usize)]) -> Vec<BackendReport> {
        let cuda = cuda.map(|n| (0..n).map(|i| device(DeviceName::Cuda(i))).collect()).map_err(String::from);
        let wgpu: Vec<_> = wgpu.iter().map(|(class, index)| device(DeviceName::Wgpu(*class, *index))).collect();
        let wgpu = if wgpu.is_empty() { Err("no Vulkan device".into()) } else { Ok(wgpu) };
        vec![
            BackendReport { backend: Backend::Cuda, devices: cuda },
            BackendReport { backend: Backend::Wgpu, devices: wgpu },
        ]
    }

    const SOFTWARE: (GpuClass, usize) = (GpuClass::Software, 0);

    #[test]
    fn auto_takes_the_first_that_opens_and_says_why_not_the_others() {
        let choice = |cuda, wgpu: &[_]| choose(Backend::Auto, &reports(cuda, wgpu), 2).unwrap();
        assert_eq!(choice(Ok(2), &[]).backend, Backend::Cuda);
        let card = choice(Err("no driver"), &[(GpuClass::Discrete, 0), SOFTWARE]);
        assert_eq!((card.backend, card.devices.len()), (Backend::Wgpu, 1));
        assert_eq!(card.passed_over, ["cuda: no driver"]);
        let cpu = choice(Err("no driver"), &[SOFTWARE]);
        assert_eq!(cpu.backend, Backend::Cpu);
        assert_eq!(cpu.passed_over[1], "wgpu: only in software (wgpu:software:0), slower than the CPU backend");
    }

    #[test]
    fn a_backend_that_was_asked_for_is_taken_or_refused() {
        assert_eq!(choose(Backend::Wgpu, &reports(Ok(1), &[SOFTWARE]), 2).unwrap().backend, Backend::Wgpu);
        let refusal = choose(Backend::Cuda, &reports(Err("no driver"), &[SOFTWARE]), 2);
        assert_eq!(refusal, Err("--backend cuda: no driver".into()));
    }

    #[test]
    fn gpus_are_dealt_out_and_cores_divided() {
        let gpus = choose(Backend::Auto, &reports(Ok(2), &[]), 8).unwrap();
        let names: Vec<_> = gpus.deal(3, 8).iter().map(|w| w.device.name.to_string()).collect();
        assert_eq!(names, ["cuda:0", "cuda:1", "cuda:0"]);
        let cpu = choose(Backend::Cpu, &[], 8).unwrap();
        assert_eq!(cpu.deal(3, 8)[0].threads, Some(2));
        assert_eq!(cpu.deal(9, 8)[0].threads, Some(1));
        assert_eq!((gpus.auto_workers(), cpu.auto_workers()), (2, 1));
    }

    #[test]
    fn launchers_of_one_machine_share_its_devices() {
        let of = |count: usize, rank: u32, size: u32| {
            let all = choose(Backend::Auto, &reports(Ok(count), &[]), 8).unwrap().shared(Share { rank, size });
            all.devices.iter().map(|device| device.name.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(
            (of(4, 0, 2), of(4, 1, 2)),
            (vec!["cuda:0".into(), "cuda:2".into()], vec!["cuda:1".into(), "cuda:3".into()])
        );
        assert_eq!((of(1, 1, 2), of(2, 2, 3)), (vec!["cuda:0".to_string()], vec!["cuda:0".to_string()]));
        assert_eq!(of(2, 0, 1).len(), 2);
    }
}
