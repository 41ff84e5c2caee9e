//! What goes on on the GPU that a worker computes on, as its driver tells: NVML, for NVIDIA's.

use convoy_proto::messages::GpuVitals;

use crate::device::DeviceName;

/// A look at one device. The driver's library is opened at the first look, by whoever looks.
#[derive(Debug)]
pub struct Monitor {
    device: DeviceName,
    driver: Option<Result<driver::Driver, driver::Absent>>,
}

impl Monitor {
    /// Of a device.
    pub fn of(device: DeviceName) -> Monitor {
        Monitor { device, driver: None }
    }

    /// How busy it is; nothing where nobody tells.
    pub fn look(&mut self) -> Option<GpuVitals> {
        let DeviceName::Cuda(index) = self.device else { return None };
        let driver = self.driver.get_or_insert_with(|| driver::Driver::open(index));
        driver.as_ref().ok()?.look()
    }
}

/// The devices that NVML knows, in words.
///
/// # Errors
/// Why there is none.
pub fn devices() -> Result<Vec<String>, String> {
    driver::devices()
}

#[cfg(feature = "cuda")]
mod driver {
    use convoy_proto::messages::GpuVitals;
    use cudarc::driver::{
        result::{self, device},
        sys::{
            self,
            CUdevice_attribute::{
                CU_DEVICE_ATTRIBUTE_PCI_BUS_ID, CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID, CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID,
            },
        },
    };
    use nvml_wrapper::Nvml;

    /// NVML, and the device's place on the bus, which both libraries call it by: their numbers differ.
    #[derive(Debug)]
    pub struct Driver {
        nvml: Nvml,
        place: String,
    }

    pub fn devices() -> Result<Vec<String>, String> {
        let nvml = Nvml::init().map_err(|problem| format!("there is none: {problem}"))?;
        let told = |at: u32| -> Result<String, nvml_wrapper::error::NvmlError> {
            let device = nvml.device_by_index(at)?;
            let (name, memory) = (device.name()?, device.memory_info()?);
            let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
            Ok(format!("{name}, {:.1} of {:.1} GiB in use", gib(memory.used), gib(memory.total)))
        };
        let count = nvml.device_count().map_err(|problem| problem.to_string())?;
        let driver = nvml.sys_driver_version().map(|version| format!("driver {version}"));
        let devices = (0..count).map(|at| told(at).map_err(|problem| format!("device {at}: {problem}")));
        driver.map_err(|problem| problem.to_string()).into_iter().map(Ok).chain(devices).collect()
    }

    /// There is no NVML, or no such device.
    #[derive(Debug)]
    pub struct Absent;

    impl Driver {
        pub fn open(index: usize) -> Result<Driver, Absent> {
            // SAFETY: loads the driver's library and reads nothing from it.
            if !unsafe { sys::is_culib_present() } || result::init().is_err() {
                return Err(Absent);
            }
            let device = i32::try_from(index).ok().and_then(|index| device::get(index).ok()).ok_or(Absent)?;
            // SAFETY: the device was given by the driver a line above.
            let attribute = |which| unsafe { device::get_attribute(device, which) }.map_err(|_| Absent);
            let place = format!(
                "{:08x}:{:02x}:{:02x}.0",
                attribute(CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID)?,
                attribute(CU_DEVICE_ATTRIBUTE_PCI_BUS_ID)?,
                attribute(CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID)?
            );
            let nvml = Nvml::init().map_err(|_| Absent)?;
            Ok(Driver { nvml, place })
        }

        pub fn look(&self) -> Option<GpuVitals> {
            let device = self.nvml.device_by_pci_bus_id(self.place.as_str()).ok()?;
            let (rates, memory) = (device.utilization_rates().ok()?, device.memory_info().ok()?);
            Some(GpuVitals {
                utilisation: f64::from(rates.gpu) / 100.0,
                memory_used_bytes: memory.used,
                memory_bytes: memory.total,
            })
        }
    }
}

#[cfg(not(feature = "cuda"))]
mod driver {
    use convoy_proto::messages::GpuVitals;

    /// A build that cannot compute there does not look there.
    #[derive(Debug)]
    pub enum Driver {}

    /// Always.
    #[derive(Debug)]
    pub struct Absent;

    pub fn devices() -> Result<Vec<String>, String> {
        Err("this build has no CUDA support".into())
    }

    impl Driver {
        pub fn open(_index: usize) -> Result<Driver, Absent> {
            Err(Absent)
        }

        pub fn look(&self) -> Option<GpuVitals> {
            match *self {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_nobody_tells_of_is_left_out() {
        for device in ["cpu", "wgpu:software:0", "cuda:4000"] {
            let mut monitor = Monitor::of(device.parse().unwrap());
            assert_eq!((monitor.look(), monitor.look()), (None, None), "{device}");
        }
    }
}
