"""outlay: spend language-model tokens well."""
