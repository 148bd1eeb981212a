//! A card that is in use: its context, its streams, what it can do.
#![allow(unsafe_code, reason = "calls of the CUDA driver")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use cudarc::driver::sys::CUdevice_attribute as Attribute;
use cudarc::driver::{CudaContext, CudaStream, DriverError, sys};

use super::error::{During, failed};
use super::library::{DriverVersion, count, probe};
use crate::error::{Error, ErrorCode, Result};

/// The oldest cards that the kernels run on: Ampere.
const OLDEST_COMPUTE_CAPABILITY: (u32, u32) = (8, 0);

/// An open card: its primary context and two streams.
#[derive(Debug)]
pub struct Device {
    compute: Arc<CudaStream>,
    copy: Arc<CudaStream>,
    properties: DeviceProperties,
    /// Bytes of device memory allocated through this.
    allocated: AtomicUsize,
    is_dry_run: AtomicBool,
}

/// While it lives, kernels of the device are not launched.
#[must_use]
pub struct DryRun<'a>(&'a Device);

impl Drop for DryRun<'_> {
    fn drop(&mut self) {
        self.0.is_dry_run.store(false, Ordering::Relaxed);
    }
}

/// A stream of a device. Its work is done in order, and beside that of the other one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Orders all steps, and the loading of the base's weights before them.
    Compute,
    /// Copies adapters while steps run. No step uses what is copied here before its copy has been waited for.
    Copy,
}

/// What a card is and can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceProperties {
    /// Its number among the visible cards.
    pub ordinal: usize,
    /// `NVIDIA H200`.
    pub name: String,
    /// Major and minor.
    pub compute_capability: (u32, u32),
    /// The version of CUDA that the driver supports.
    pub driver_version: DriverVersion,
    /// Number of streaming multiprocessors.
    pub multiprocessors: u32,
    /// Most bytes of shared memory that a block can have.
    pub shared_memory_per_block: u32,
    /// Most threads of a block.
    pub threads_per_block: u32,
    /// Bytes of device memory.
    pub total_bytes: usize,
}

impl Device {
    /// Opens the card with this number.
    ///
    /// # Errors
    /// `cuda_unavailable`: no driver or too old a one, no such card, a card below compute capability 8.0, or one that another
    /// process uses exclusively.
    pub fn open(ordinal: usize) -> Result<Arc<Self>> {
        let driver_version = probe()?;
        let count = count()?;
        if ordinal >= count {
            return Err(Error::new(ErrorCode::CudaUnavailable, format!("there is no card cuda:{ordinal}"))
                .with_found(format!("{count} {}", if count == 1 { "card" } else { "cards" }))
                .with_hint("cards are counted from 0, after CUDA_VISIBLE_DEVICES"));
        }
        let context = CudaContext::new(ordinal)
            .map_err(|error| failed("opening the card", error).with_code(ErrorCode::CudaUnavailable))?;
        // SAFETY: nothing is allocated yet, and what one stream writes is read by the other only after it has been waited for.
        unsafe { context.disable_event_tracking() };
        let properties = DeviceProperties::of(&context, driver_version).during("reading the card's properties")?;
        if properties.compute_capability < OLDEST_COMPUTE_CAPABILITY {
            let version = |(major, minor): (u32, u32)| format!("compute capability {major}.{minor}");
            return Err(Error::new(ErrorCode::CudaUnavailable, format!("the card {} is too old", properties.name))
                .with_expected(format!("{} or newer", version(OLDEST_COMPUTE_CAPABILITY)))
                .with_found(version(properties.compute_capability)));
        }
        let compute = context.new_stream().during("creating a stream")?;
        let copy = context.new_stream().during("creating a stream")?;
        let (allocated, is_dry_run) = (AtomicUsize::new(0), AtomicBool::new(false));
        Ok(Arc::new(Self { compute, copy, properties, allocated, is_dry_run }))
    }

    /// What the card is and can do.
    pub fn properties(&self) -> &DeviceProperties {
        &self.properties
    }

    /// Bytes of device memory that nobody uses.
    ///
    /// # Errors
    /// `cuda_driver_failed`.
    pub fn free_bytes(&self) -> Result<usize> {
        let (free, _) = self.compute.context().mem_get_info().during("asking for free memory")?;
        Ok(free)
    }

    /// Bytes of device memory that were allocated here and not freed yet.
    pub fn allocated_bytes(&self) -> usize {
        self.allocated.load(Ordering::Relaxed)
    }

    /// Begins a dry run: launches are checked, kernels are compiled, but nothing is launched.
    pub fn dry_run(&self) -> DryRun<'_> {
        self.is_dry_run.store(true, Ordering::Relaxed);
        DryRun(self)
    }

    /// Whether this is a dry run, after which memory that kernels should have written is undefined.
    pub fn is_dry_run(&self) -> bool {
        self.is_dry_run.load(Ordering::Relaxed)
    }

    /// Waits until all steps are done.
    ///
    /// # Errors
    /// `cuda_driver_failed`: a kernel failed.
    pub fn synchronize(&self) -> Result<()> {
        self.wait_for(Stream::Compute)
    }

    /// Waits until all work of a stream is done.
    pub(super) fn wait_for(&self, stream: Stream) -> Result<()> {
        self.stream(stream).synchronize().during("waiting for the card")
    }

    /// Makes the context that of the calling thread, and returns a stream.
    pub(super) fn bind(&self, stream: Stream) -> Result<sys::CUstream> {
        let stream = self.stream(stream);
        stream.context().bind_to_thread().during("choosing the card")?;
        Ok(stream.cu_stream())
    }

    pub(super) fn count_allocated(&self, bytes: usize) {
        self.allocated.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn count_freed(&self, bytes: usize) {
        self.allocated.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn stream(&self, stream: Stream) -> &CudaStream {
        match stream {
            Stream::Compute => &self.compute,
            Stream::Copy => &self.copy,
        }
    }
}

impl DeviceProperties {
    fn of(context: &CudaContext, driver_version: DriverVersion) -> std::result::Result<Self, DriverError> {
        let attribute = |attribute| context.attribute(attribute).map(i32::unsigned_abs);
        Ok(Self {
            ordinal: context.ordinal(),
            name: context.name()?,
            compute_capability: (
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            driver_version,
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_memory_per_block: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            threads_per_block: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?,
            total_bytes: context.total_mem()?,
        })
    }
}
