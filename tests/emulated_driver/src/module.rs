//! Modules: PTX, loaded and ready to run.
use std::collections::HashMap;
use std::ffi::CStr;
use std::sync::Arc;

use exlora_ptx_emulator::instruction::StateSpace;
use exlora_ptx_emulator::kernel::Kernel;
use exlora_ptx_emulator::lowering::{VariableAddresses, lower};
use exlora_ptx_emulator::parser::parse;
use exlora_ptx_emulator::parser::syntax::{InitialValue, Module as Syntax};

use crate::cubin::{self, CubinKernel, ELF_MAGIC, HEADER_BYTES};
use crate::driver::{CUdeviceptr, Driver, Handle, Out, Result, Text, call_in_context, put, put_if_wanted};
use crate::errors::{
    CUDA_ERROR_INVALID_HANDLE, CUDA_ERROR_INVALID_IMAGE, CUDA_ERROR_INVALID_PTX, CUDA_ERROR_INVALID_VALUE,
    CUDA_ERROR_NO_BINARY_FOR_GPU, CUDA_ERROR_NOT_FOUND, CUDA_ERROR_OUT_OF_MEMORY, CUresult,
};
use crate::function::Function;

/// A loaded module.
pub(crate) struct Module {
    /// Variables with their address and size in bytes.
    variables: HashMap<String, (CUdeviceptr, u64)>,
    functions: Vec<Handle>,
}

/// First words of fat binaries.
const FAT_BINARY_MAGICS: [[u8; 4]; 2] = [0xba55_ed50_u32.to_le_bytes(), 0x4662_43b1_u32.to_le_bytes()];

impl Driver {
    /// Refuses a cubin, whose code only a card executes. Its kernels are kept, to compare the PTX with.
    fn refuse_cubin(&mut self, file: &[u8]) -> CUresult {
        let Some(kernels) = cubin::kernels(file) else {
            return self.error(CUDA_ERROR_INVALID_IMAGE, "the image is a damaged cubin");
        };
        let names: Vec<String> = kernels.iter().map(CubinKernel::to_string).collect();
        self.refused_cubin = Some(kernels);
        // The caller is expected to load PTX instead: nothing is printed.
        let message =
            format!("cubins are not executed, only PTX; kernels with their parameters' bytes: {}", names.join(" "));
        self.last_error.clone_from(&message);
        self.messages.insert(CUDA_ERROR_NO_BINARY_FOR_GPU, message);
        CUDA_ERROR_NO_BINARY_FOR_GPU
    }

    /// Compares the kernels with those of the cubin that was refused before, if that is about the same kernels.
    fn compare_with_cubin(&mut self, kernels: &[Kernel]) -> Result {
        let Some(expected) = self.refused_cubin.take() else { return Ok(()) };
        let mut found: Vec<CubinKernel> = kernels
            .iter()
            .map(|kernel| CubinKernel {
                name: kernel.name.clone(),
                parameters: kernel.parameters.iter().map(|parameter| parameter.bytes).collect(),
            })
            .collect();
        let is_other_module = !expected.iter().any(|kernel| found.iter().any(|other| other.name == kernel.name));
        let mut sorted = expected;
        sorted.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        found.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        if is_other_module || sorted == found {
            return Ok(());
        }
        let list = |kernels: &[CubinKernel]| kernels.iter().map(CubinKernel::to_string).collect::<Vec<_>>().join(" ");
        let message = format!(
            "the cubin that was refused and this PTX differ in names or parameters of kernels: {} and {}",
            list(&sorted),
            list(&found)
        );
        Err(self.error(CUDA_ERROR_INVALID_IMAGE, message))
    }

    fn load(&mut self, text: &str) -> Result<Handle> {
        self.check_fault()?;
        let syntax = parse(text).map_err(|message| self.error(CUDA_ERROR_INVALID_PTX, message))?;
        self.check_target(&syntax.target)?;
        let variables = self.allocate_variables(&syntax)?;
        let addresses: VariableAddresses =
            variables.iter().map(|(name, &(address, _))| (name.clone(), address)).collect();
        let mut kernels = vec![];
        for function in syntax.functions.iter().filter(|function| function.is_entry && function.body.is_some()) {
            let kernel = lower(&syntax, function, &addresses).map_err(|message| {
                self.error(CUDA_ERROR_INVALID_PTX, format!("kernel {}: {message}", function.name))
            })?;
            kernel.warnings.iter().for_each(|warning| self.warn(warning.clone()));
            kernels.push(kernel);
        }
        self.compare_with_cubin(&kernels)?;
        let functions = kernels
            .into_iter()
            .map(|kernel| {
                let handle = self.new_handle();
                self.functions.insert(handle, Function::new(Arc::new(kernel)));
                handle
            })
            .collect();
        let handle = self.new_handle();
        self.modules.insert(handle, Module { variables, functions });
        Ok(handle)
    }

    /// PTX runs on its architecture and newer ones; that of an `a` architecture on this one alone.
    fn check_target(&mut self, target: &str) -> Result {
        let (major, minor) = self.settings.compute_capability;
        let device = major * 10 + minor;
        let digits: String = target.chars().filter(char::is_ascii_digit).collect();
        let wanted: u32 = digits.parse().unwrap_or(0);
        if wanted > device || target.ends_with('a') && wanted != device {
            let message = format!("the PTX is for {target}, the device has compute capability {major}.{minor}");
            return Err(self.error(CUDA_ERROR_NO_BINARY_FOR_GPU, message));
        }
        Ok(())
    }

    /// Places the module's variables in device memory, with their first contents.
    fn allocate_variables(&mut self, syntax: &Syntax) -> Result<HashMap<String, (CUdeviceptr, u64)>> {
        let mut variables = HashMap::new();
        let in_memory = |space| matches!(space, StateSpace::Global | StateSpace::Const);
        let declared = || syntax.variables.iter().filter(|variable| in_memory(variable.space) && !variable.is_external);
        for variable in declared() {
            let (bytes, label) = (variable.bytes.max(1), format!("module variable {}", variable.name));
            let address = self.memory.allocate(bytes, &label).ok_or(CUDA_ERROR_OUT_OF_MEMORY)?;
            self.memory.fill(address, &[0], bytes);
            variables.insert(variable.name.clone(), (address, variable.bytes));
        }
        for variable in declared() {
            let (start, _) = variables[&variable.name];
            for initializer in &variable.initializers {
                let value = match &initializer.value {
                    InitialValue::Bits(bits) => *bits,
                    InitialValue::Address { symbol, offset } => {
                        variables.get(symbol).map_or(0, |(address, _)| address.wrapping_add_signed(*offset))
                    }
                };
                self.memory.write(start + initializer.offset, &value.to_le_bytes()[..initializer.bytes as usize]);
            }
        }
        Ok(variables)
    }
}

/// Loads an image: PTX that ends with a zero. Cubins are refused with `CUDA_ERROR_NO_BINARY_FOR_GPU`.
///
/// # Safety
/// `image` points to PTX that ends with a zero, to a whole cubin, or to a fat binary.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadData(module: Out<Handle>, image: *const u8) -> CUresult {
    call_in_context(|driver| {
        if image.is_null() {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        // SAFETY: PTX and binaries both have at least four bytes.
        let magic = unsafe { *image.cast::<[u8; 4]>() };
        if magic == ELF_MAGIC {
            // SAFETY: a whole cubin begins with a header, which tells its length.
            let file = unsafe {
                let bytes = cubin::file_bytes(&*image.cast::<[u8; HEADER_BYTES]>()).ok_or(CUDA_ERROR_INVALID_IMAGE)?;
                std::slice::from_raw_parts(image, bytes)
            };
            return Err(driver.refuse_cubin(file));
        }
        if FAT_BINARY_MAGICS.contains(&magic) {
            return Err(driver.error(CUDA_ERROR_NO_BINARY_FOR_GPU, "fat binaries are not executed, only PTX"));
        }
        // SAFETY: it is PTX, which ends with a zero.
        let text = unsafe { CStr::from_ptr(image.cast()) }.to_string_lossy();
        put(module, driver.load(&text)?)
    })
}

/// [`cuModuleLoadData`]; the options have no effect.
///
/// # Safety
/// As for [`cuModuleLoadData`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadDataEx(
    module: Out<Handle>,
    image: *const u8,
    _count: u32,
    _options: *const u32,
    _values: *const usize,
) -> CUresult {
    // SAFETY: the caller's contract.
    unsafe { cuModuleLoadData(module, image) }
}

/// Unloads a module after all work.
#[unsafe(no_mangle)]
pub extern "C" fn cuModuleUnload(module: Handle) -> CUresult {
    call_in_context(|driver| {
        let result = driver.run_all_streams();
        let module = driver.modules.remove(&module).ok_or(CUDA_ERROR_INVALID_HANDLE)?;
        for function in &module.functions {
            driver.functions.remove(function);
        }
        for &(address, _) in module.variables.values() {
            driver.memory.free(address);
        }
        result
    })
}

/// A kernel by its name.
#[unsafe(no_mangle)]
pub extern "C" fn cuModuleGetFunction(function: Out<Handle>, module: Handle, name: Text) -> CUresult {
    call_in_context(|driver| {
        let name = name.read()?;
        let module = driver.modules.get(&module).ok_or(CUDA_ERROR_INVALID_HANDLE)?;
        match module.functions.iter().find(|handle| driver.functions[handle].kernel.name == name) {
            Some(&handle) => put(function, handle),
            None => Err(driver.error(CUDA_ERROR_NOT_FOUND, format!("the module has no kernel '{name}'"))),
        }
    })
}

/// A variable by its name: its address and its size in bytes.
#[unsafe(no_mangle)]
pub extern "C" fn cuModuleGetGlobal_v2(
    address: Out<CUdeviceptr>,
    bytes: Out<usize>,
    module: Handle,
    name: Text,
) -> CUresult {
    call_in_context(|driver| {
        let name = name.read()?;
        let module = driver.modules.get(&module).ok_or(CUDA_ERROR_INVALID_HANDLE)?;
        let &(start, size) = module.variables.get(&name).ok_or(CUDA_ERROR_NOT_FOUND)?;
        put_if_wanted(address, start);
        put_if_wanted(bytes, size as usize);
        Ok(())
    })
}
