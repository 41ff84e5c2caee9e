//! Devices: how they are named, found, and opened.
//!
//! Looking for GPUs loads drivers, which may be broken in ways that no check can foresee: [`probe`] is meant to run in
//! a process of its own (`launcher probe`), so that whatever a driver does there is an answer and not a crash.

use std::{fmt, str::FromStr};

use burn::{Dispatch, DispatchDevice, tensor::Tensor};
use burn_flex::FlexDevice;
use convoy_proto::config::Backend;
use serde::{Deserialize, Serialize};

use crate::contain::contain;

/// One device of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum DeviceName {
    /// The processor.
    Cpu,
    /// An NVIDIA GPU, by its index among the visible ones.
    Cuda(usize),
    /// A Vulkan device of a class, by its index in the class.
    Wgpu(GpuClass, usize),
}

/// What Vulkan says a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GpuClass {
    /// A card.
    Discrete,
    /// Shares the processor's memory.
    Integrated,
    /// A part of a card, given to this machine.
    Virtual,
    /// A rasteriser in software.
    Software,
}

const CLASSES: [(GpuClass, &str); 4] = [
    (GpuClass::Discrete, "discrete"),
    (GpuClass::Integrated, "integrated"),
    (GpuClass::Virtual, "virtual"),
    (GpuClass::Software, "software"),
];

impl DeviceName {
    /// The backend it belongs to.
    pub fn backend(self) -> Backend {
        match self {
            DeviceName::Cpu => Backend::Cpu,
            DeviceName::Cuda(_) => Backend::Cuda,
            DeviceName::Wgpu(..) => Backend::Wgpu,
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceName::Cpu => f.write_str("cpu"),
            DeviceName::Cuda(index) => write!(f, "cuda:{index}"),
            DeviceName::Wgpu(class, index) => {
                let name = CLASSES.iter().find(|(c, _)| c == class).map_or("", |(_, name)| name);
                write!(f, "wgpu:{name}:{index}")
            }
        }
    }
}

impl FromStr for DeviceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!("`{text}` is no device; devices are cpu, cuda:N and wgpu:discrete|integrated|virtual|software:N")
        };
        let parts: Vec<_> = text.split(':').collect();
        match parts.as_slice() {
            ["cpu"] => Ok(DeviceName::Cpu),
            ["cuda", index] => Ok(DeviceName::Cuda(index.parse().map_err(|_| wrong())?)),
            ["wgpu", class, index] => {
                let class = CLASSES.iter().find(|(_, name)| name == class).ok_or_else(wrong)?.0;
                Ok(DeviceName::Wgpu(class, index.parse().map_err(|_| wrong())?))
            }
            _ => Err(wrong()),
        }
    }
}

impl From<DeviceName> for String {
    fn from(name: DeviceName) -> String {
        name.to_string()
    }
}

impl TryFrom<String> for DeviceName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// A device that was found, and opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundDevice {
    /// How to ask for it.
    pub name: DeviceName,
    /// What its driver calls it.
    pub about: String,
}

impl FoundDevice {
    /// Whether it is the processor in disguise.
    pub fn is_software(&self) -> bool {
        matches!(self.name, DeviceName::Wgpu(GpuClass::Software, _))
    }
}

/// What became of looking for a backend's devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendReport {
    /// Which backend.
    pub backend: Backend,
    /// Its devices, or why there is none.
    pub devices: Result<Vec<FoundDevice>, String>,
}

/// Looks for every GPU backend's devices and opens each; the processor needs no looking for.
pub fn probe() -> Vec<BackendReport> {
    let report = |backend, find: fn() -> Result<Vec<FoundDevice>, String>| {
        let found = contain(find).unwrap_or_else(|panic| Err(format!("the driver failed: {panic}")));
        BackendReport { backend, devices: found.and_then(only_working) }
    };
    vec![report(Backend::Cuda, find_cuda), report(Backend::Wgpu, find_wgpu)]
}

/// Keeps the devices that can add two numbers.
fn only_working(found: Vec<FoundDevice>) -> Result<Vec<FoundDevice>, String> {
    let mut reason = "no device".to_string();
    let mut works = |device: &FoundDevice| {
        let name = device.name;
        let sum = contain(|| {
            let device = open(name)?;
            let two = Tensor::<Dispatch, 1>::ones([2], &device) + 1.0;
            two.try_into_data()
                .map_err(|error| error.to_string())?
                .to_vec::<f32>()
                .map_err(|error| format!("{error:?}"))
        });
        match sum.unwrap_or_else(Err) {
            Ok(sum) if sum == [2.0, 2.0] => true,
            Ok(sum) => {
                reason = format!("{} ({name}) says that 1 + 1 is {sum:?}", device.about);
                false
            }
            Err(problem) => {
                reason = format!("{} ({name}) does not open: {problem}", device.about);
                false
            }
        }
    };
    let working: Vec<_> = found.into_iter().filter(|device| works(device)).collect();
    if working.is_empty() { Err(reason) } else { Ok(working) }
}

#[cfg(feature = "cuda")]
fn find_cuda() -> Result<Vec<FoundDevice>, String> {
    use cudarc::driver::{result, sys};
    // SAFETY: loads the driver's library and reads nothing from it.
    if !unsafe { sys::is_culib_present() } {
        return Err("no NVIDIA driver (libcuda) is installed".into());
    }
    result::init().map_err(|error| format!("the NVIDIA driver does not start: {error}"))?;
    let count = result::device::get_count().map_err(|error| format!("the NVIDIA driver counts no device: {error}"))?;
    if count == 0 {
        return Err("the NVIDIA driver shows no device (CUDA_VISIBLE_DEVICES may hide them)".into());
    }
    let describe = |index: i32| {
        let name = result::device::get(index).and_then(result::device::get_name);
        let about = name.unwrap_or_else(|error| format!("a device without a name ({error})"));
        FoundDevice { name: DeviceName::Cuda(index as usize), about }
    };
    Ok((0..count).map(describe).collect())
}

#[cfg(not(feature = "cuda"))]
fn find_cuda() -> Result<Vec<FoundDevice>, String> {
    if std::path::Path::new("/proc/driver/nvidia/version").exists() || std::path::Path::new("/dev/nvidiactl").exists() {
        return Err("an NVIDIA driver is here, but this build has no CUDA support; rebuild with \
                    `cargo build --release --features cuda`"
            .into());
    }
    Err("this build has no CUDA support".into())
}

#[cfg(feature = "wgpu")]
fn find_wgpu() -> Result<Vec<FoundDevice>, String> {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::VULKAN;
    let instance = wgpu::Instance::new(descriptor);
    let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(|error| error.to_string())?;
    let adapters = runtime.block_on(instance.enumerate_adapters(wgpu::Backends::VULKAN));
    let mut seen = [0usize; 4];
    let found = adapters.iter().filter_map(|adapter| {
        let info = adapter.get_info();
        let class = match info.device_type {
            wgpu::DeviceType::DiscreteGpu => GpuClass::Discrete,
            wgpu::DeviceType::IntegratedGpu => GpuClass::Integrated,
            wgpu::DeviceType::VirtualGpu => GpuClass::Virtual,
            wgpu::DeviceType::Cpu => GpuClass::Software,
            wgpu::DeviceType::Other => return None,
        };
        let index = seen[class as usize];
        seen[class as usize] += 1;
        Some(FoundDevice { name: DeviceName::Wgpu(class, index), about: format!("{} ({})", info.name, info.driver) })
    });
    let mut found = found.collect::<Vec<_>>();
    // A card before a chip before a slice of a card; software last.
    found.sort_by_key(|device| match device.name {
        DeviceName::Wgpu(class, index) => (class as usize, index),
        _ => (usize::MAX, 0),
    });
    if found.is_empty() {
        return Err("no Vulkan device (is there a Vulkan loader, libvulkan.so.1, and a driver?)".into());
    }
    Ok(found)
}

#[cfg(not(feature = "wgpu"))]
fn find_wgpu() -> Result<Vec<FoundDevice>, String> {
    Err("this build has no WGPU support; rebuild with `cargo build --release --features wgpu`".into())
}

/// The device for burn, without autodiff.
///
/// # Errors
/// A device that this build cannot drive.
pub fn open(name: DeviceName) -> Result<DispatchDevice, String> {
    match name {
        DeviceName::Cpu => Ok(DispatchDevice::Flex(FlexDevice)),
        #[cfg(feature = "cuda")]
        DeviceName::Cuda(index) => Ok(DispatchDevice::Cuda(burn_cuda::CudaDevice { index })),
        #[cfg(feature = "wgpu")]
        DeviceName::Wgpu(class, index) => Ok(DispatchDevice::Vulkan(match class {
            GpuClass::Discrete => burn_wgpu::WgpuDevice::DiscreteGpu(index),
            GpuClass::Integrated => burn_wgpu::WgpuDevice::IntegratedGpu(index),
            GpuClass::Virtual => burn_wgpu::WgpuDevice::VirtualGpu(index),
            GpuClass::Software => burn_wgpu::WgpuDevice::Cpu,
        })),
        #[allow(unreachable_patterns, reason = "reachable in builds without every backend")]
        name => Err(format!("{name}: this build has no support for {}", name.backend())),
    }
}

/// What two workers must have in common to compute the same bits.
pub fn numeric_class(name: DeviceName, about: &str) -> String {
    let burn = "burn 0.21.0";
    match name {
        DeviceName::Cpu => format!("{burn} flex {} {}", std::env::consts::ARCH, instruction_set()),
        // Two of a kind compute alike, whatever their numbers.
        name if about.is_empty() => format!("{burn} {name}"),
        name => format!("{burn} {} {about}", name.backend()),
    }
}

/// The vector instructions that this processor has, of those that change what is computed.
#[cfg(target_arch = "x86_64")]
pub fn instruction_set() -> &'static str {
    if is_x86_feature_detected!("avx512f") {
        "avx512"
    } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        "avx2"
    } else {
        "baseline"
    }
}

/// The vector instructions that this processor has, of those that change what is computed.
#[cfg(not(target_arch = "x86_64"))]
pub fn instruction_set() -> &'static str {
    "baseline"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        for text in ["cpu", "cuda:3", "wgpu:discrete:0", "wgpu:software:1"] {
            assert_eq!(text.parse::<DeviceName>().map(|name| name.to_string()), Ok(text.into()));
        }
        for text in ["", "gpu", "cuda", "cuda:x", "wgpu:0", "wgpu:fast:0"] {
            assert!(text.parse::<DeviceName>().unwrap_err().starts_with(&format!("`{text}` is no device")));
        }
    }

    #[test]
    fn the_processor_adds() {
        let found = FoundDevice { name: DeviceName::Cpu, about: "processor".into() };
        assert_eq!(only_working(vec![found.clone()]), Ok(vec![found]));
    }
}
