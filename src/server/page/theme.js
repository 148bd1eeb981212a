// Light, dark, or as the system has it.

const NAME = "exlora.theme";

/** Applies the choice of an earlier visit, and follows the select. */
export function followTheme(select) {
  select.value = localStorage.getItem(NAME) ?? "system";
  if (select.value === "") select.value = "system";
  const apply = () => {
    document.documentElement.dataset.theme = select.value;
  };
  select.addEventListener("change", () => {
    localStorage.setItem(NAME, select.value);
    apply();
  });
  apply();
}
