"""`fastcrystal evaluate FOLDER_OR_FILE`: crystals from any model, judged as files (docs/evaluation.md).

    from fastcrystal.evaluation.evaluate import evaluate_files

    result = evaluate_files("my_cifs/", reference="test.npz")
    print(result.table())
    result.save("evaluations/my_cifs")

crystals    what is read: flat arrays in float64, and the rejects
pairs       which crystals match: pairs through the pool, groups of equal crystals
rates       match rate, METRe, cRMSE, and the baselines beside them
single      space groups and charge balance of one crystal at a time, in workers with a time limit (`worker`)
requested   what was asked for, and what came out
report      the result as JSON, parquet and a table
"""
