"""AU-LLaVA: a vision-language model that reads facial action units. Import from the modules, e.g. `au_llava.action_units`."""
