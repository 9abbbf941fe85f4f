//! Which GPUs this machine has: NVML is asked first, then the driver's files; what neither knows of
//! can be configured.

use super::nvml;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

/// NVML waits for ever for a device that has fallen off its bus; a healthy one takes a second for
/// some devices.
const NVML_PATIENCE: Duration = Duration::from_secs(10);
/// Where NVIDIA's driver lists its devices.
const DRIVER_LIST: &str = "/proc/driver/nvidia/gpus";

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gpus {
    /// `nvml` or `driver`; empty where there are none.
    pub source: &'static str,
    /// The models, in the order of `CUDA_DEVICE_ORDER=PCI_BUS_ID`.
    pub models: Vec<String>,
}

impl Gpus {
    /// Looks for them. A machine on which nothing answers has none.
    #[must_use]
    pub fn find(nvml_library: &Path) -> Self {
        match nvml_models(nvml_library, NVML_PATIENCE) {
            Ok(models) if !models.is_empty() => {
                let source = "nvml";
                return Self { source, models };
            }
            Ok(_) => {}
            Err(reason) => tracing::debug!(reason, "NVML does not tell of GPUs"),
        }
        let models = listed_models(Path::new(DRIVER_LIST));
        if models.is_empty() {
            return Self::default();
        }
        let source = "driver";
        Self { source, models }
    }
}

/// On a thread of its own, which stays behind where the library does not return.
fn nvml_models(library: &Path, patience: Duration) -> Result<Vec<String>, String> {
    let library: PathBuf = library.to_owned();
    let (answer, answered) = mpsc::channel();
    let asking = std::thread::Builder::new().name("nvml".to_owned());
    asking
        // Nobody waits any more: what it says is of no use.
        .spawn(move || drop(answer.send(nvml::models(&library))))
        .map_err(|error| error.to_string())?;
    match answered.recv_timeout(patience) {
        Ok(models) => models,
        Err(_) => Err(format!("no answer within {patience:?}")),
    }
}

/// What NVIDIA's driver shows.
fn listed_models(list: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(list) else {
        return Vec::new();
    };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    // By bus address.
    paths.sort();
    paths
        .iter()
        .map(|path| {
            let text = fs::read_to_string(path.join("information")).unwrap_or_default();
            let model = text.lines().find_map(|line| line.strip_prefix("Model:"));
            model.map_or("unknown", str::trim).to_owned()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// A library with the functions of NVML that are used, as its header declares them; `INIT` is
    /// what its initialisation does.
    const SOURCE: &str = r#"
        #include <stdio.h>
        #include <unistd.h>
        typedef struct {
            char busIdLegacy[16];
            unsigned int domain, bus, device, pciDeviceId, pciSubSystemId;
            char busId[32];
        } nvmlPciInfo_t;
        struct nvmlDevice_st { const char *name; unsigned int bus; };
        typedef struct nvmlDevice_st *nvmlDevice_t;
        static struct nvmlDevice_st devices[] = {
            {"NVIDIA Second 80GB", 0x41}, {"NVIDIA First 40GB", 0x07},
        };
        static int initialised;
        int nvmlInit_v2(void) { INIT; initialised = 1; return 0; }
        int nvmlShutdown(void) { initialised = 0; return 0; }
        int nvmlDeviceGetCount_v2(unsigned int *count) {
            if (!initialised) return 1;
            *count = sizeof devices / sizeof *devices;
            return 0;
        }
        int nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device) {
            if (!initialised) return 1;
            *device = &devices[index];
            return 0;
        }
        int nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *pci) {
            pci->domain = 0;
            pci->bus = device->bus;
            pci->device = 0;
            snprintf(pci->busId, sizeof pci->busId, "00000000:%02X:00.0", device->bus);
            return 0;
        }
        int NAME(nvmlDevice_t device, char *name, unsigned int length) {
            return (unsigned) snprintf(name, length, "%s", device->name) < length ? 0 : 7;
        }
    "#;

    fn library(directory: &Path, name: &str, init: &str, name_function: &str) -> PathBuf {
        let source = directory.join(format!("{name}.c"));
        let library = directory.join(name);
        fs::write(&source, SOURCE).unwrap();
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-o"])
            .arg(&library)
            .arg(format!("-DINIT={init}"))
            .arg(format!("-DNAME={name_function}"))
            .arg(&source)
            .status()
            .unwrap();
        assert!(built.success());
        library
    }

    #[test]
    fn nvml_tells_the_models_in_the_order_of_their_addresses() {
        let directory = tempfile::tempdir().unwrap();
        let library = library(
            directory.path(),
            "libnvidia-ml.so.1",
            "",
            "nvmlDeviceGetName",
        );
        let found = Gpus::find(&library);
        assert_eq!(found.source, "nvml");
        assert_eq!(found.models, ["NVIDIA First 40GB", "NVIDIA Second 80GB"]);
    }

    #[test]
    fn a_library_that_is_no_use_is_told_and_costs_nothing_more() {
        let directory = tempfile::tempdir().unwrap();
        let make = |name: &str, init: &str, function: &str| {
            library(directory.path(), name, init, function)
        };
        let told =
            |library: PathBuf| nvml_models(&library, Duration::from_millis(300)).unwrap_err();
        assert_eq!(
            told(make("unloaded.so", "return 9", "nvmlDeviceGetName")),
            "nvmlInit_v2 answers 9",
            "the driver is not loaded"
        );
        assert_eq!(
            told(make("other.so", "", "somethingElse")),
            "it has no nvmlDeviceGetName"
        );
        assert_eq!(
            told(make("hangs.so", "for (;;) pause()", "nvmlDeviceGetName")),
            "no answer within 300ms"
        );
        let text = directory.path().join("text.so");
        fs::write(&text, "no library").unwrap();
        let reason = told(text);
        assert!(reason.contains("text.so"), "{reason}");
        let reason = told(directory.path().join("absent.so"));
        assert!(reason.contains("absent.so"), "{reason}");
    }

    #[test]
    fn the_drivers_list_is_read_by_address() {
        let directory = tempfile::tempdir().unwrap();
        for (address, model) in [("0000:41:00.0", "Second"), ("0000:07:00.0", "First")] {
            let device = directory.path().join(address);
            fs::create_dir(&device).unwrap();
            let text = format!("Model: \t\t NVIDIA {model}\nIRQ: 7\n");
            fs::write(device.join("information"), text).unwrap();
        }
        assert_eq!(
            listed_models(directory.path()),
            ["NVIDIA First", "NVIDIA Second"]
        );
        assert!(listed_models(&directory.path().join("absent")).is_empty());
    }
}
